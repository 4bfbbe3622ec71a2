"""One emitted graph lowered through Inductor, in the order in which it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._inductor import compile_fx, config, lowering
from torch._inductor.fx_passes import post_grad
from torch._inductor.ir import Pointwise, StorageBox
from torch._inductor.virtualized import V

from graphopt.base.errors import CaptureError
from graphopt.emit.emit import unwatched
from graphopt.lower.fusion_guard import FusionGuard
from graphopt.lower.kernel_groups import groups_end_where_memory_is_freed
from graphopt.lower.virtual_values import STORED

#: A boxed graph as it is called: with a list of arguments, which it empties.
Lowered = Callable[[list[Any]], Any]

#: What a plan needs of Inductor. Draws are eager's. Convolutions are turned before they are planned (`channels_last`).
SETTINGS: dict[str, Any] = {"fallback_random": True, "layout_optimization": False}
#: Tells what Inductor caches of ours from what it caches of others: the same graph is fused otherwise there.
CACHE_TAG = "graphopt-5"
#: Eager's kernels, where Inductor's own are wrong: see `_averages_at_edges`.
_FALLBACKS = {
    torch.ops.aten.avg_pool2d_backward.default: lowering.fallback_avg_pool2d_backward,
    torch.ops.aten.avg_pool3d_backward.default: lowering.fallback_avg_pool3d_backward,
}
#: Of a graph with numbers among its inputs: the first micro-batch of a window has another one than those behind it.
_MOST_VARIANTS = 4


def lower(module: fx.GraphModule, *, is_backward: bool) -> Lowered:
    """Compile a graph whose placeholders have fake tensors; all that it returns has the strides that they have there.

    Inputs that nothing reads, such as undefined tangents, may be None. Plain numbers are constants of what is compiled:
    it is compiled anew for others, of which there must be few.
    """
    inputs = module.graph.find_nodes(op="placeholder")
    numbers = [i for i, node in enumerate(inputs) if isinstance(node.meta["val"], (bool, int, float))]
    if not numbers:
        return _compiled(module, {}, is_backward=is_backward)
    known = {tuple(inputs[i].meta["val"] for i in numbers): _compiled(module, {}, is_backward=is_backward)}

    def run(args: list[Any]) -> Any:
        given = tuple(args[i] for i in numbers)
        if given not in known:
            if len(known) >= _MOST_VARIANTS:
                raise CaptureError(f"compiler='inductor': {inputs[numbers[0]]} changes from step to step; use 'eager'")
            named = {inputs[i].name: value for i, value in zip(numbers, given, strict=True)}
            known[given] = _compiled(module, named, is_backward=is_backward)
        return known[given](args)

    return run


def _compiled(module: fx.GraphModule, numbers: Mapping[str, Any], *, is_backward: bool) -> Lowered:
    graph, positions, unwatched_outputs = _plain(module.graph)
    inputs = [numbers.get(node.name, node.meta["val"]) for node in graph.find_nodes(op="placeholder")]
    output = graph.output_node()
    (returned,) = output.args
    output.meta["user_visible_output_idxs"] = [i for i, item in enumerate(returned) if isinstance(item, fx.Node)]  # type: ignore[arg-type]
    plain = fx.GraphModule(module, graph)
    with as_planned(), V.set_fake_mode(detect_fake_mode(inputs)):
        compiled: Any = compile_fx.compile_fx_inner(plain, inputs, is_backward=is_backward)

    def run(args: list[Any]) -> Any:
        read = [args[position] for position in positions]
        args.clear()
        results = compiled(read)
        if not unwatched_outputs:
            return results
        return [unwatched(each) if i in unwatched_outputs else each for i, each in enumerate(results)]

    return run


def _plain(graph: fx.Graph) -> tuple[fx.Graph, list[int], set[int]]:
    """A copy that takes those of its arguments that it reads, one by one: which, and which outputs are `unwatched`."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    output = copied.output_node()
    output.meta = dict(graph.output_node().meta)
    (returned,) = output.args
    outputs = {i for i, item in enumerate(returned) if isinstance(item, fx.Node) and item.target is unwatched}  # type: ignore[arg-type]
    for node in copied.find_nodes(op="call_function", target=unwatched):
        node.replace_all_uses_with(node.args[0])
        copied.erase_node(node)
    inputs = copied.find_nodes(op="placeholder")
    positions = [i for i, node in enumerate(inputs) if node.users]
    for node in inputs:
        if not node.users:
            copied.erase_node(node)
    return copied, positions, outputs


@contextmanager
def as_planned() -> Iterator[None]:
    """Inside, Inductor keeps the order that it is given."""
    with ExitStack() as stack:
        stack.enter_context(config.patch(SETTINGS))
        stack.enter_context(torch.compiler.config.patch(cache_key_tag=CACHE_TAG))  # type: ignore[attr-defined]
        stack.enter_context(V.set_choices_handler(FusionGuard()))
        stack.enter_context(_sums_stay())
        stack.enter_context(_averages_at_edges())
        stack.enter_context(_stored_where_marked())
        stack.enter_context(groups_end_where_memory_is_freed())
        yield


@contextmanager
def _sums_stay() -> Iterator[None]:
    """Let no sum with a product become one call of a library, which has to wait for both.

    The product with a tied weight would move behind the whole backward, and keep the logits' gradient alive until then.
    """
    with mock.patch.object(post_grad, "should_prefer_unfused_addmm", lambda _match: True):
        yield


@contextmanager
def _averages_at_edges() -> Iterator[None]:
    """Let eager's kernels compute gradients of average pools with `ceil_mode`.

    Inductor's own divide by the size of a whole window where it reaches beyond the edge (torch 2.13, CPU).
    """
    own = {each: lowering.lowerings[each] for each in _FALLBACKS}

    def lowered(target: Any) -> Callable[..., Any]:
        def choose(gradient: Any, x: Any, size: Any, stride: Any, padding: Any, ceil_mode: bool, *more: Any) -> Any:
            made = _FALLBACKS[target] if ceil_mode else own[target]
            return made(gradient, x, size, stride, padding, ceil_mode, *more)

        return choose

    with mock.patch.dict(lowering.lowerings, {each: lowered(each) for each in _FALLBACKS}):
        yield


@contextmanager
def _stored_where_marked() -> Iterator[None]:
    """Let what a plan stores be stored in its place, though Inductor would compute it where it is read."""
    before = StorageBox.has_exceeded_max_reads

    def has_exceeded_max_reads(self: Any) -> bool:
        node = V.graph.current_node
        return before(self) or (node is not None and STORED in node.meta and isinstance(self.data, Pointwise))

    with mock.patch.object(StorageBox, "has_exceeded_max_reads", has_exceeded_max_reads):
        yield
