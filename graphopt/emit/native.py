"""The library that runs a graph's operators without Python between them: it needs a C++ compiler, once."""

from __future__ import annotations

import ctypes
import logging
import sysconfig
from functools import cache
from pathlib import Path

import torch

from graphopt.base.compiler import Recipe, load_library
from graphopt.base.errors import CompileError

logger = logging.getLogger("graphopt")


@cache
def native_runner() -> ctypes.PyDLL | None:
    """The library; None, and a line in the log, where it cannot be built: graphs then run as Python."""
    folder = Path(torch.__file__).parent
    headers = (folder / "include", folder / "include/torch/csrc/api/include", sysconfig.get_paths()["include"])
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    flags = ("-std=c++17", "-O1", "-w", abi, *(f"-I{each}" for each in headers))
    # what torch throws is caught here, so that both must have one library of C++
    own = ("-Wl,--no-as-needed", "-l:libstdc++.so.6", "-l:libgcc_s.so.1")
    links = (*own, f"-L{folder / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch_python")
    made_for = f"{torch.__version__} {sysconfig.get_config_var('SOABI')}"
    source = Path(__file__).with_name("runner.cpp")
    try:
        loaded = load_library(Recipe("graph-runner", (source,), flags, links, made_for))
    except CompileError as error:
        logger.info("graphs run as Python, a little slower: %s", str(error).splitlines()[0])
        return None
    library = ctypes.PyDLL("graph-runner", handle=loaded._handle)  # calls hold the interpreter's lock, and may raise
    library.graphopt_read_program.restype = ctypes.c_void_p
    library.graphopt_read_program.argtypes = (ctypes.py_object,)
    library.graphopt_run_program.restype = ctypes.py_object
    library.graphopt_run_program.argtypes = (ctypes.c_void_p, ctypes.py_object)
    library.graphopt_failed_step.restype = ctypes.c_size_t
    library.graphopt_drop_program.restype = None
    library.graphopt_drop_program.argtypes = (ctypes.c_void_p,)
    return library
