"""Runs one function in several processes that are joined by torch.distributed (gloo)."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import runpy
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# a server that has loaded all already forks the ranks, which would take six seconds each for it
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.rank_server"])


class RankError(AssertionError):
    """What went wrong in which process."""


def _on_loopback(rank: int) -> None:  # noqa: ARG001
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"


def run_ranks(
    world: int,
    function: Callable[..., Any],
    *args: Any,
    timeout: float = 240.0,
    enter: Callable[[int], None] = _on_loopback,
) -> list[Any]:
    """`function(*args)` in `world` processes with torch.distributed initialized; their results in rank order.

    `enter(rank)` is the first thing that a process does. `function` must be importable (a module's own, not a
    closure), results must pickle. Raises RankError with the tracebacks of all that failed, or where not all have
    finished after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(world):
            mine, theirs = _context.Pipe(duplex=False)
            work = (enter, rank, world, folder, theirs, function, args)
            process = _context.Process(target=_rank, args=work, daemon=True)
            process.start()
            theirs.close()
            ends.append(mine)
            processes.append(process)
        try:
            return _collected(ends, time.monotonic() + timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()


def run_program(world: int, path: Path, timeout: float = 240.0) -> list[str]:
    """Run a file in `world` processes that are told of each other as torchrun does it; what each of them printed.

    Raises RankError as `run_ranks`.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ends, processes = [], []
    for rank in range(world):
        mine, theirs = _context.Pipe(duplex=False)
        processes.append(_context.Process(target=_program, args=(rank, world, port, path, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        ends.append(mine)
    try:
        return _collected(ends, time.monotonic() + timeout)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _program(rank: int, world: int, port: int, path: Path, end: Connection) -> None:
    about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in about.items()})
    printed = io.StringIO()
    try:
        _on_loopback(rank)
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(path), run_name="__main__")
        end.send_bytes(pickle.dumps((True, printed.getvalue())))
    except BaseException:
        end.send_bytes(pickle.dumps((False, traceback.format_exc())))


def _collected(ends: list[Connection], deadline: float) -> list[Any]:
    results, errors = [], []
    for rank, end in enumerate(ends):
        if not end.poll(max(0.0, deadline - time.monotonic())):
            errors.append(f"rank {rank}: not finished in time")
            continue
        try:
            is_good, result = pickle.loads(end.recv_bytes())
        except EOFError:
            is_good, result = False, "the process died"
        results.append(result)
        if not is_good:
            errors.append(f"rank {rank}: {result}")
    if errors:
        raise RankError("\n".join(errors))
    return results


def _rank(
    enter: Callable[[int], None],
    rank: int,
    world: int,
    folder: str,
    end: Connection,
    function: Callable[..., Any],
    args: Any,
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        enter(rank)
        store = dist.FileStore(str(Path(folder) / "store"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
        # by value: a connection's own pickler leaves tensors in shared memory that ends with the process
        end.send_bytes(pickle.dumps((True, function(*args))))
        # One that ends while another still connects to it would be that one's failure.
        with contextlib.suppress(Exception):
            store.set(f"done {rank}", "")
            store.wait([f"done {other}" for other in range(world)], timedelta(seconds=5))
        dist.destroy_process_group()
    except BaseException:
        end.send_bytes(pickle.dumps((False, traceback.format_exc())))
