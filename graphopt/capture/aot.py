"""The seam to AOTAutograd: its partitioner is where a joint graph is captured, and where the emitted halves go in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.convert_frame import compile_lock
from torch._functorch._aot_autograd import collect_metadata_analysis, input_output_analysis
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from graphopt.base.errors import GraphoptError, PassError
from graphopt.capture.capture_graph import FindVirtual, HandOver, capture_graph, none_is_virtual, return_all
from graphopt.capture.changing_sizes import (
    CONSTANT,
    Sizes,
    fix_sizes,
    has_symbols,
    symbolic_sizes,
    with_plain_layout,
)
from graphopt.capture.mends.autograd_function import plain_autograd_function
from graphopt.capture.mends.eagers_kernels import eagers_kernels
from graphopt.capture.mends.effect_tokens import without_tokens
from graphopt.capture.mends.known_sums import known_sums
from graphopt.capture.mends.masked_writes import with_masked_writes
from graphopt.capture.mends.regions import with_regions_inlined
from graphopt.capture.mends.true_strides import true_strides
from graphopt.capture.mends.wrong_upstream import warn_of_wrong_upstream
from graphopt.capture.numbers import fix_numbers, floats_stay_floats
from graphopt.capture.recurrent.layers import with_recurrent_layers
from graphopt.capture.tangents import ChooseTangents
from graphopt.emit.backward import BackwardModules
from graphopt.emit.emit import Emitted, emit
from graphopt.emit.many_schedules import BoxedCall, ManySchedules, with_saved_unknown
from graphopt.emit.runnable import Around, Runnable
from graphopt.emit.whole_backward import emit_beside_whole
from graphopt.graph.captured_graph import CapturedGraph, Decision
from graphopt.graph.nodes import is_own_file
from graphopt.graph.transfers import decided_step
from graphopt.lower.compiler import Compiler
from graphopt.problem.schedule import Schedule

if TYPE_CHECKING:
    from graphopt.lower.halves import LoweredHalves

logger = logging.getLogger("graphopt")

#: How a captured graph is to run.
Decide = Callable[[CapturedGraph], Decision]


@dataclass(frozen=True, eq=False)
class CompiledGraph:
    """One of Dynamo's graphs, ready to be called with its flat inputs.

    `emitted` is None where it needs no gradient. `runnables` are its forward and, once that is compiled, its backward;
    `lowered` is what they run in place of their own code, None where that runs. Where the graph serves several sizes,
    `many` has its schedules, and it is called by `with_schedule`.
    """

    call: Callable[..., Any]
    emitted: Emitted | None
    runnables: list[Runnable]
    lowered: LoweredHalves | None = None
    many: ManySchedules | None = None

    def with_schedule(self, schedule: Schedule) -> CompiledGraph:
        """The same graph, which serves several sizes, with another schedule."""
        assert self.many is not None
        each = self.many.of(schedule)
        call = self.many.selecting(each.number, self.call)
        return CompiledGraph(call, each.emitted, [each.forward, each.backward])

    @property
    def planned_tangents(self) -> frozenset[int] | None:
        """The tangents that its backward is planned for; None before that is compiled."""
        return next((each.modules.planned for each in self.runnables if each.modules is not None), None)


@dataclass(frozen=True)
class CaptureRequest:
    """One of Dynamo's graphs to be captured: a name for people, and how its ops are priced.

    `hand_over` gives the passes that decide what becomes of the gradients, `tangents` chooses those that the backward
    is made for (None: all). What is around the forward and the backward
    stands between autograd and the graph.
    """

    module: fx.GraphModule
    example_inputs: Sequence[Any]
    cost_model: str
    name: str = "model"
    hand_over: HandOver = field(default=return_all)
    around_forward: Around | None = None
    around_backward: Around | None = None
    tangents: ChooseTangents | None = None
    compiler: Compiler = "eager"
    #: The schedules of this graph for which there is code, where it serves several sizes.
    at_hand: dict[Schedule, None] = field(default_factory=dict)
    sizes: Sizes = CONSTANT
    #: Whether what the backward starts from is there when the forward begins.
    tangent_is_known: bool = False


class _Captured(Exception):
    """Ends a compilation that was only meant to capture; it leaves `capture_only` as a value."""

    def __init__(self, graph: CapturedGraph) -> None:
        super().__init__(graph.name)
        self.graph = graph


def capture_only(request: CaptureRequest) -> CapturedGraph | None:
    """The captured joint graph; None where the graph needs no gradient."""

    def stop(graph: CapturedGraph) -> Decision:
        # AOTAutograd has no other way out between tracing and compiling
        raise _Captured(graph)

    try:
        compile_graph(request, stop)
    except _Captured as done:
        return done.graph
    return None


def compile_graph(request: CaptureRequest, decide: Decide) -> CompiledGraph:
    """Capture one of Dynamo's graphs, and run it as `decide` says.

    A graph that needs no gradient is run as it is.
    """
    warn_of_wrong_upstream(request.module)
    with_regions_inlined(request.module)
    with_recurrent_layers(request.module)
    with_masked_writes(request.module)
    reason = break_reason(request.module)
    made = _Compilation(request)

    def partition(joint: fx.GraphModule, inputs: object, *, num_fwd_outputs: int, **known: Any) -> tuple[Any, Any]:
        static = known.get("static_lifetime_input_indices") or ()
        captured, write = _captured(request, joint, inputs, num_fwd_outputs, static, reason)
        return made.halves_of(captured, write, decide(captured), num_fwd_outputs)

    compiler = aot_autograd(
        fw_compiler=made.forward,
        bw_compiler=made.backward,
        inference_compiler=made.without_gradients,
        partition_fn=partition,
        decompositions=_decompositions(request.compiler),
        keep_inference_input_mutations=True,
    )
    call = _traced(request, compiler, made.begin_anew)
    return CompiledGraph(call, made.emitted, made.runnables, made.lowered, made.many)


def _decompositions(compiler: Compiler) -> dict[Any, Any] | None:
    if compiler == "eager":
        return None
    from graphopt.lower.before_planning import decompositions

    return decompositions()


@dataclass(eq=False)
class _Compilation:
    """What AOTAutograd asks for while it compiles a graph, in the order in which it asks."""

    request: CaptureRequest
    runnables: list[Runnable] = field(default_factory=list)
    emitted: Emitted | None = None
    lowered: LoweredHalves | None = None
    many: ManySchedules | None = None

    def begin_anew(self) -> None:
        """What was compiled so far was for nothing."""
        self.runnables.clear()
        self.emitted = self.lowered = self.many = None

    def halves_of(
        self, captured: CapturedGraph, write: Callable[[Decision], Emitted], decision: Decision, num_outputs: int
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """A forward and a backward: AOTAutograd takes from them what is saved, and which inputs have a gradient."""
        request = self.request
        if captured.step.has_changing_sizes:
            around = (request.around_forward, request.around_backward)
            self.many = ManySchedules(lambda each: write(Decision(each)), request.name, *around, request.at_hand)
            self.emitted = self.many.of(decision.schedule).emitted
            forward = with_saved_unknown(self.emitted.forward, num_outputs)
        else:
            self.emitted = write(decision)
            forward = self.emitted.forward
        if request.compiler == "inductor":
            from graphopt.lower.halves import lower_halves

            self.lowered = lower_halves(self.emitted)
        return forward, self.emitted.whole_backward or self.emitted.backward

    def forward(self, module: fx.GraphModule, _inputs: object) -> Runnable | BoxedCall:
        """What runs as the forward."""
        return self.many.forward() if self.many is not None else self._runnable(module, self.request.around_forward)

    def backward(self, module: fx.GraphModule, _inputs: object) -> Runnable | BoxedCall:
        """What runs as the backward."""
        if self.many is not None:
            return self.many.backward()
        assert self.emitted is not None
        has_all = self.emitted.whole_backward is None
        # AOTAutograd compiles a copy of what it was given
        planned = module if has_all and self.lowered is None else self.emitted.backward
        made = self._runnable(planned, self.request.around_backward)
        made.modules = BackwardModules(planned, None if has_all else module, self.request.name)
        return made

    def without_gradients(self, module: fx.GraphModule, _inputs: object) -> Runnable:
        """What runs where nothing needs a gradient."""
        module.graph.set_codegen(fx.graph._BoxedCodeGen())
        module.recompile()
        return self._runnable(module)

    def _runnable(self, module: fx.GraphModule, around: Around | None = None) -> Runnable:
        self.runnables.append(Runnable(module, around, lowered=self.lowered.calls if self.lowered else {}))
        return self.runnables[-1]


def _captured(
    request: CaptureRequest,
    joint: fx.GraphModule,
    inputs: object,
    num_outputs: int,
    static_inputs: Sequence[int],
    break_reason: str,
) -> tuple[CapturedGraph, Callable[[Decision], Emitted]]:
    """The joint graph ready to plan, and what writes it in two halves as it is decided."""
    graph, tokens = without_tokens(joint, num_outputs)
    static = [i - tokens.forward for i in static_inputs]
    virtual: FindVirtual = none_is_virtual
    if request.compiler == "inductor":
        from graphopt.lower.before_planning import as_inductor_partitions
        from graphopt.lower.virtual_values import virtual_nodes

        graph, virtual = as_inductor_partitions(graph, inputs, static), virtual_nodes
    options = (request.cost_model, request.name, break_reason, request.hand_over, request.tangents, virtual)
    captured = capture_graph(graph, static, *options, tangent_is_known=request.tangent_is_known)

    def write(decision: Decision) -> Emitted:
        whole, step, schedule = (
            captured.form(decision.pieces).whole,
            decided_step(captured, decision),
            decision.schedule,
        )
        depot = decision.depot
        emitted = emit_beside_whole(step, schedule, whole, depot) if whole else emit(step, schedule, depot)
        tokens.put_back(emitted.forward, emitted.backward, emitted.whole_backward)
        return emitted

    return captured, write


def _traced(request: CaptureRequest, compiler: Callable[..., Any], begin_anew: Callable[[], None]) -> Any:
    """What the compiler makes of the graph; where it cannot be traced with numbers that change, with constants."""
    changes = (_dense_tangents, _draws_kept, true_strides, eagers_kernels, floats_stay_floats, plain_autograd_function)
    with compile_lock, ExitStack() as stack:  # one thread at a time: what is changed here is PyTorch's own
        for each in (*changes, known_sums):
            stack.enter_context(each())
        try:
            return compiler(request.module, request.example_inputs)
        except (_Captured, Exception) as error:
            is_meant = isinstance(error, (_Captured, GraphoptError)) and not isinstance(error, PassError)
            if is_meant or not has_symbols(request.module):
                raise
            # torch has ops, or their derivatives, that take no symbol
            logger.info("numbers are constants of this plan, as it cannot be traced otherwise: %s", error)
            if next(symbolic_sizes(request.module), None) is not None:
                request.sizes.cannot_change(f"{type(error).__name__}: {error}")
            fix_numbers(request.module)
            fix_sizes(request.module)
            begin_anew()
            return compiler(request.module, list(map(with_plain_layout, request.example_inputs)))


def _draws_kept() -> AbstractContextManager[None]:
    """Let no random op be dropped whose result is unused: what is drawn after it would be drawn from another state.

    While a graph is traced, `fx.Graph.eliminate_dead_code` takes random ops for pure ones unless this is set.
    """
    return torch._inductor.config.patch(fallback_random=True)  # type: ignore[no-any-return]


@contextmanager
def _dense_tangents() -> Iterator[None]:
    """Let AOTAutograd expect tangents as operators make them: each dense, in memory of its own.

    It expects the strides of the outputs. Of outputs that are views into a larger tensor (`chunk`) it would copy every
    tangent, with the gaps between its rows, while all of the originals are still there; and it takes tangents of two
    views of one tensor for views of one tangent, and that of an input that is written for the input's own memory.
    """
    before = collect_metadata_analysis.coerce_tangent_and_suggest_memory_format

    def expected(tangent: Any) -> Any:
        plain = isinstance(tangent, torch.Tensor) and not is_traceable_wrapper_subclass(tangent)
        # preserve_format: the strides of a dense output stay, of others their order
        return before(torch.empty_like(tangent) if plain and tangent.layout == torch.strided else tangent)

    with ExitStack() as patches:
        for module in (collect_metadata_analysis, input_output_analysis):
            patches.enter_context(mock.patch.object(module, before.__name__, expected))
        yield


def break_reason(module: fx.GraphModule) -> str:
    """Why and where Dynamo ended this graph; "" where it is the end of the model."""
    reason = getattr(module, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return ""
    users = [frame for frame in reason.user_stack if not is_own_file(frame.filename)]
    frame = users[-1] if users else None
    where = f" at {frame.filename}:{frame.lineno} in {frame.name}" if frame else ""
    return f"{str(reason.reason).splitlines()[0]}{where}"
