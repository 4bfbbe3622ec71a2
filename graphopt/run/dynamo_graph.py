"""One of Dynamo's graphs: first met, then planned and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphopt.capture.aot import CaptureRequest, CompiledGraph, Decide, break_reason, capture_only, compile_graph
from graphopt.graph.captured_graph import CapturedGraph


@dataclass(eq=False)
class DynamoGraph:
    """One of Dynamo's graphs; what a call of it does is for `run` to say.

    `example_inputs` are fake: the graph outlives the batch, and must not hold it.
    """

    module: fx.GraphModule
    example_inputs: Sequence[Any]
    tracing: Any
    run: Callable[[DynamoGraph, tuple[Any, ...]], Any]
    name: str = "model"
    compiled: CompiledGraph | None = None

    def __call__(self, *args: Any) -> Any:
        return self.run(self, args)

    @property
    def is_whole_model(self) -> bool:
        """Whether Dynamo came to the end of the model in it; it may still not be the only graph of a call."""
        return not break_reason(self.module)

    def capture(self, cost_model: str) -> CapturedGraph | None:
        """The joint graph, not yet planned; None where the graph needs no gradient."""
        with torch._guards.tracing(self.tracing):
            return capture_only(self._request(cost_model))

    def compile(self, cost_model: str, decide: Decide) -> None:
        """Capture it (again), to run with the schedule that `decide` gives."""
        with torch._guards.tracing(self.tracing):
            self.compiled = compile_graph(self._request(cost_model), decide)

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

    def _request(self, cost_model: str) -> CaptureRequest:
        return CaptureRequest(self.module, self.example_inputs, cost_model, self.name)
