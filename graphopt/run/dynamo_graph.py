"""One of Dynamo's graphs: first met, then planned and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphopt.capture.ambient import Ambient
from graphopt.capture.aot import CaptureRequest, CompiledGraph, Decide, break_reason, capture_only, compile_graph
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.problem.schedule import Schedule
from graphopt.run.autocast_backward import has_full_precision_products, say_if_backward_is_inside, warn_of_rounding


@dataclass(eq=False)
class DynamoGraph:
    """One of Dynamo's graphs; what a call of it does is for `run` to say.

    `example_inputs` are fake: the graph outlives the batch, and must not hold it. `tracing` and `ambient` are what
    Dynamo knows of it, and the modes in which it met it.
    """

    module: fx.GraphModule
    example_inputs: Sequence[Any]
    tracing: Any
    ambient: Ambient
    run: Callable[[DynamoGraph, tuple[Any, ...]], Any]
    name: str = "model"
    compiled: CompiledGraph | None = None
    #: Whether eager would round in its backward, were that inside of autocast; and whether that was said.
    may_round: bool = False
    warned_of_rounding: bool = False

    def __call__(self, *args: Any) -> Any:
        return self.run(self, args)

    @property
    def is_whole_model(self) -> bool:
        """Whether Dynamo came to the end of the model in it; it may still not be the only graph of a call."""
        return not break_reason(self.module)

    def capture(self, cost_model: str) -> CapturedGraph | None:
        """The joint graph, not yet planned; None where the graph needs no gradient."""
        with self._as_met():
            return capture_only(self._request(cost_model))

    def compile(self, cost_model: str, decide: Decide) -> None:
        """Capture it (again), to run with the schedule that `decide` gives."""
        with self._as_met():
            self.compiled = compile_graph(self._request(cost_model), decide)
        emitted = self.compiled.emitted
        self.may_round = emitted is not None and has_full_precision_products(emitted.backward)

    def train(self, args: tuple[Any, ...]) -> Any:
        """Run it as it is planned."""
        assert self.compiled is not None
        result = self.compiled.call(*args)
        autocast = next((name for name, _, _ in self.ambient.autocast if torch.is_autocast_enabled(name)), None)
        if autocast and self.may_round and not self.warned_of_rounding:
            say_if_backward_is_inside(result, autocast, self._warn_of_rounding)
        return result

    def _warn_of_rounding(self) -> None:
        if not self.warned_of_rounding:
            self.warned_of_rounding = True
            warn_of_rounding()

    def run_without_gradients(self, args: Sequence[Any]) -> Any:
        """Run it as it was captured; its outputs say that they need gradients where they would."""
        with torch.no_grad():
            results = self.module(*args)
        (returned,) = self.module.graph.output_node().args
        marked = []
        for node, result in zip(returned, results, strict=True):  # type: ignore[arg-type]
            example = node.meta.get("example_value") if isinstance(node, fx.Node) else None
            needs = isinstance(example, torch.Tensor) and example.requires_grad
            marked.append(result.detach().requires_grad_() if needs and isinstance(result, torch.Tensor) else result)
        return tuple(marked)

    def compile_without_gradients(self, cost_model: str) -> None:
        """Compile a graph that needs no gradient, to run as it is."""

        def decide(_graph: CapturedGraph) -> Schedule:
            raise AssertionError("a graph that was captured without gradients has some now")

        self.compile(cost_model, decide)

    @contextmanager
    def _as_met(self) -> Iterator[None]:
        """Inside, all is as when Dynamo met the graph; its backward is captured without autocast, as it should run."""
        without_autocast = torch._functorch.config.patch(backward_pass_autocast="off")
        with torch._guards.tracing(self.tracing), self.ambient.restored(), without_autocast:
            yield

    def _request(self, cost_model: str) -> CaptureRequest:
        return CaptureRequest(self.module, self.example_inputs, cost_model, self.name)
