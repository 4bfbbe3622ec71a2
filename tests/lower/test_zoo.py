"""Models of the zoo through Inductor, at less than their peak: judged by float64, inside the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import graphopt
from graphopt.api.optimize import optimize
from graphopt.device.measure import peak_bytes
from graphopt.device.storages import tensors_in
from graphopt.verify.compare import compare_with_eager
from tests.support.zoo import ZOO

#: Experts that are routed, products of half precision, a Function and checkpoints of the model's own with dropout,
#: writes in place, and an unrolled recurrence with the gradients of one weight from every step.
#: Shares of eager's peak: kernels of the checkpointed one take most of it, whatever is recomputed.
SHARES = {"mixture_of_experts": 0.75, "autocast": 0.75, "by_hand": 0.95, "in_place": 0.75, "gru": 0.75}
#: All of its unrolled steps take two minutes to compile.
STEPS = {"gru": 5}


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", SHARES)
def test_a_model_of_the_zoo(name: str) -> None:
    torch._dynamo.reset()
    case = ZOO[name]()
    if name in STEPS:
        case = replace(case, args=(case.args[0][:, : STEPS[name] + 1],))
    known = [*case.model.parameters(), *case.model.buffers(), *tensors_in((case.args, case.kwargs))]

    def step() -> None:
        case.loss(case.model(*case.args, **case.kwargs)).backward()  # type: ignore[no-untyped-call]

    budget_bytes = int(SHARES[name] * peak_bytes(step, known, "cpu"))
    case.model.zero_grad(set_to_none=True)
    optimize(case.model, budget_bytes, compiler="inductor", example_inputs=case.args, example_kwargs=case.kwargs)
    session = case.model.graphopt.session  # type: ignore[union-attr]
    found = compare_with_eager(session, case.args, case.kwargs)
    assert not found.bitwise and "float64" in " ".join(found.lines)
    assert peak_bytes(step, known, "cpu") <= budget_bytes
    assert isinstance(case.model.graphopt.plan, graphopt.Plan)  # type: ignore[union-attr]
