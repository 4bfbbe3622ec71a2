"""States of generators: what a random op that runs again is given, and what they take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch._guards import detect_fake_mode

from graphopt.graph.step_graph import StepGraph, tensors_of
from graphopt.problem.schedule import Schedule

# Mersenne twister; Philox. CUDA's are kept in host memory.
_STATE_BYTES = {"cpu": 5056, "cuda": 16}
#: Of one state of the CPU's generator, which is the only one that is planned.
GENERATOR_STATE_BYTES = _STATE_BYTES["cpu"]


def generator_state_bytes(step: StepGraph, schedule: Schedule) -> int:
    """Bytes of generator states that the schedule's recomputed random ops keep, on the step's device."""
    times = Counter(schedule)
    replayed = sum(1 for op, count in times.items() if count > 1 and step.ops[op].random)
    return replayed * GENERATOR_STATE_BYTES if step.device.type == "cpu" else 0


def fake_generator_state(step: StepGraph) -> torch.Tensor:
    """A generator's state, without memory."""
    fakes: Sequence[torch.Tensor] = [
        t for node in step.graph_module.graph.find_nodes(op="placeholder") for t in tensors_of(node)
    ]
    mode = detect_fake_mode(fakes)
    assert mode is not None
    with mode:
        return torch.empty(_STATE_BYTES.get(step.device.type, _STATE_BYTES["cpu"]), dtype=torch.uint8, device="cpu")
