"""A plan made for example inputs, and a first training call that is captured anew: what differed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch._dynamo.utils import get_compilation_metrics

from graphopt.capture.ambient import Ambient
from graphopt.capture.captures import in_users_words
from graphopt.run.graphs.dynamo_graph import DynamoGraph


@dataclass(frozen=True)
class Example:
    """What was captured for example inputs: the number of graphs, and the modes around the first."""

    graphs: int
    ambient: Ambient

    @staticmethod
    def of(graphs: Sequence[DynamoGraph]) -> Example | None:
        """The example that these graphs were captured for; None where there are none."""
        return Example(len(graphs), graphs[0].ambient) if graphs else None

    def warn_if_captured_anew(self, graphs: Sequence[DynamoGraph]) -> None:
        """Say what differed where the first training call came to a graph that the example did not have."""
        if len(graphs) > self.graphs:
            cause = "; ".join(_modes(self.ambient, graphs[self.graphs].ambient)) or _reason_of_dynamo()
            warnings.warn(
                f"graphopt: the first training call differs from example_inputs, and was captured and planned anew: "
                f"{cause}. The plan of the example is not in force; give an example that is called as the loop calls "
                "the model, under the same modes",
                stacklevel=4,
            )


def _modes(example: Ambient, call: Ambient) -> list[str]:
    def words(mode: tuple[str, bool, torch.dtype]) -> str:
        _, enabled, dtype = mode
        return f"on, with {str(dtype).removeprefix('torch.')}" if enabled else "off"

    return [
        f"autocast on {then[0]} is {words(now)}, and was {words(then)} for the example"
        for then, now in zip(example.autocast, call.autocast, strict=True)
        if words(then) != words(now)
    ]


def _reason_of_dynamo() -> str:
    """Which of Dynamo's guards failed last, with the user's names."""
    reasons = [metrics.recompile_reason for metrics in get_compilation_metrics() if metrics.recompile_reason]
    if not reasons:
        return "TORCH_LOGS=recompiles shows why"
    return in_users_words(reasons[-1])
