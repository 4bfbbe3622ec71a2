"""The plan of a model, from those of its graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.shares import joint_peak_bytes, smallest_peak_bytes
from graphopt.problem.plan import Plan


def build_plan(
    model: str,
    budget_bytes: int,
    resident_bytes: Mapping[str, int],
    planned: Sequence[PlannedGraph],
    kernels_beside_bytes: int = 0,
) -> Plan:
    """The plan of a model from the plans of its graphs.

    `kernels_beside_bytes` is what compiled kernels were measured to take beside them, below 0 where they take less.
    """
    studies = [graph.study for graph in planned]
    whole = [study.origin for study in studies]
    resident = sum(resident_bytes.values())
    return Plan(
        model=model,
        device=str(studies[0].graph.step.device) if studies else "cpu",
        torch_version=torch.__version__,
        budget_bytes=budget_bytes,
        peak_bytes=resident + joint_peak_bytes(studies, [graph.schedule for graph in planned]) + kernels_beside_bytes,
        eager_peak_bytes=resident + joint_peak_bytes(whole, [study.graph.captured_schedule for study in whole]),
        minimum_bytes=resident + smallest_peak_bytes(studies),
        resident_bytes=dict(resident_bytes),
        graphs=tuple(graph.plan for graph in planned),
    )
