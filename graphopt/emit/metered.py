"""What the operators of an emitted graph take while they run: it is run node by node, the allocator read at each.

Values are given up behind the node that reads them last, as in the code that runs otherwise: the peak is the same, and
so are the bits.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from graphopt.device.peak_window import CpuWindow
from graphopt.device.storages import tensors_in
from graphopt.emit.emit import RECOMPUTED
from graphopt.graph.captured_graph import TakenByOp

_AND_STATE = "_and_state"


def run_metered(module: fx.GraphModule, args: list[Any], window: CpuWindow, taken: dict[str, TakenByOp]) -> Any:
    """Run a boxed graph, which empties its list of arguments; `taken` gets the most that each op took, by its name."""
    meter = _Meter(module, garbage_collect_values=True)
    meter.window, meter.taken = window, taken
    meter.extra_traceback = False
    inputs = module.graph.find_nodes(op="placeholder")
    values = {node: item if node.users else None for node, item in zip(inputs, args, strict=True)}
    args.clear()
    return meter.run(initial_env=values)


class _Meter(fx.Interpreter):
    """Reads the allocator around each node that calls something."""

    window: CpuWindow
    taken: dict[str, TakenByOp]

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        before_bytes = self.window.live_bytes()
        self.window.take()
        result = super().run_node(n)
        peak_bytes, after_bytes = self.window.take(), self.window.live_bytes()
        storages = tuple(tensor.untyped_storage().nbytes() for tensor in tensors_in(result))
        scratch_bytes = peak_bytes - max(before_bytes, after_bytes)
        now = TakenByOp(scratch_bytes, max(after_bytes - before_bytes, 0), storages)
        name = _op_name(n)
        self.taken[name] = now.most(self.taken[name]) if name in self.taken else now
        # generated code drops at once what nobody reads, and the interpreter never does
        return result if n.users else None


def _op_name(node: fx.Node) -> str:
    """The name of the op that a node is, also where it runs it again or keeps the generator's state beside it."""
    return str(node.meta[RECOMPUTED]) if RECOMPUTED in node.meta else node.name.removesuffix(_AND_STATE)
