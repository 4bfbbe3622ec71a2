"""Training steps at every budget: measured inside it, as predicted, and the very step that has no budget."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.utils import _pytree as pytree

import graphopt
from graphopt.capture.aot import CaptureRequest, capture_only
from graphopt.device.measure import peak_bytes
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.step.micro_batches import micro
from tests.support.loops import Batch, EagerLoop, Whole, state_of
from tests.support.zoo import ZOO, differences

NORM, SCALE = graphopt.ClipNorm(1.0), graphopt.DynamicLossScale(2.0**10)
STEPS = 3
MIB = 2**20


@dataclass(frozen=True)
class Training:
    """A model, what is taken of its batch, and options of the step."""

    model: str
    part: tuple[slice, ...]
    accumulate: int | str = 1
    clip: Any = None
    scale: Any = None
    half: bool = False
    optimizer: Callable[..., optim.Optimizer] = optim.AdamW
    device: str = "cpu"

    def __str__(self) -> str:
        words = [self.model, f"accumulate {self.accumulate}", *(["clipped"] * (self.clip is not None))]
        return ", ".join([*words, *(["scaled"] * (self.scale is not None)), *(["half"] * self.half)])

    def build(self) -> tuple[nn.Module, Batch]:
        case = ZOO[self.model]()
        model = Whole(case).to(self.device, torch.bfloat16 if self.half else None)
        return model, pytree.tree_map(self.taken, (case.args, case.kwargs))

    def taken(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        part = leaf[self.part].clone().to(self.device)
        return part.to(torch.bfloat16) if self.half and part.is_floating_point() else part

    def run(self, budget_bytes: int | None) -> Ran:
        torch._dynamo.reset()
        gc.collect()  # on CUDA, what is left of an earlier model is in the way of this one
        model, (args, kwargs) = self.build()
        step = graphopt.train_step(
            model,
            None,
            self.optimizer(model.parameters(), 1e-3),
            budget_bytes,
            example_inputs=args,
            example_kwargs=kwargs,
            accumulate=self.accumulate,
            clip=self.clip,
            loss_scale=self.scale,
            masters=self.half,
        )
        peaks = []
        for number in range(STEPS):
            torch.manual_seed(number)
            peaks.append(peak_bytes(lambda: step(*args, **kwargs), resident(step, (args, kwargs)), self.device))
        held = {f"master {i}": p for i, p in enumerate(step.optimizer.param_groups[0]["params"])} if self.half else {}
        state = {**({} if self.half else state_of(model, step.optimizer)), **held}
        return Ran(step.plan, step.micro_batch_size, max(peaks), {name: t.cpu() for name, t in state.items()})


@dataclass(frozen=True)
class Ran:
    """What a training came to: its highest peak of any step, and its parameters, buffers and state afterwards."""

    plan: graphopt.Plan
    micro_rows: int
    measured_bytes: int
    state: dict[str, Tensor]


def resident(step: graphopt.TrainStep, batch: Batch) -> list[Tensor]:
    """All that is there before a step and stays."""
    state = [value for entry in step.optimizer.state.values() for value in entry.values()]
    trained = [parameter for group in step.optimizer.param_groups for parameter in group["params"]]
    sums = step.accumulators
    leaves = [*step.model.parameters(), *step.model.buffers(), *pytree.tree_leaves(batch), *state, *trained, *sums]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def unique_bytes(tensors: list[Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@pytest.fixture
def captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings at several budgets share what AOTAutograd traces, which takes most of their time."""
    known: dict[str, CapturedGraph | None] = {}

    def captured(request: CaptureRequest) -> CapturedGraph | None:
        key = f"{request.module.code} {request.example_inputs}"
        if key not in known:
            known[key] = capture_only(request)
        return known[key]

    monkeypatch.setattr(micro, "capture_only", captured)


def check(training: Training) -> None:
    """At two shares of what the step takes without a budget, and at the least that it says it needs."""
    free = training.run(None)
    plan = free.plan
    assert abs(plan.peak_bytes - free.measured_bytes) <= 0.01 * free.measured_bytes, "without a budget"
    feasible = 0
    for budget_bytes in (int(0.9 * plan.peak_bytes), int(0.6 * plan.peak_bytes), plan.minimum_bytes):
        if budget_bytes < plan.minimum_bytes:
            with pytest.raises(graphopt.BudgetError):
                training.run(budget_bytes)
            continue
        feasible += 1
        ran = training.run(budget_bytes)
        predicted_bytes = ran.plan.peak_bytes
        print(f"{training}: budget {budget_bytes:,} predicted {predicted_bytes:,} measured {ran.measured_bytes:,}")
        assert ran.measured_bytes <= budget_bytes and predicted_bytes <= budget_bytes
        assert abs(predicted_bytes - ran.measured_bytes) <= 0.01 * ran.measured_bytes
        assert differences(ran.state, free.state) == {}
    assert feasible > 0


rows, shorter = slice, slice
TRAININGS = [
    Training("in_place", (rows(1024),), 4, NORM, SCALE),
    Training("lstm", (rows(64), shorter(9)), optimizer=optim.RMSprop),
    Training("gpt2", (rows(4), shorter(64))),
    Training("gpt2", (rows(4), shorter(64)), 4, NORM, SCALE),
    Training("unet", (rows(2),), 1, NORM, None),
    Training("unet", (rows(2),), 2, None, SCALE),
    Training("mixture_of_experts", (rows(512),), 4, NORM, None),
    Training("mixture_of_experts", (rows(512),), 1, None, SCALE, optimizer=optim.SGD),
    Training("in_place", (rows(1024),), 4, None, None, half=True),
    Training("in_place", (rows(1024),), 1, NORM, SCALE, half=True),
]


@pytest.mark.fast(2)
@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("training", TRAININGS, ids=str)
def test_every_step_keeps_to_its_budget(training: Training) -> None:
    check(training)


@pytest.mark.slow
@pytest.mark.usefixtures("captured_once")
def test_the_size_of_a_micro_batch_that_is_chosen_keeps_to_the_budget() -> None:
    training = Training("in_place", (rows(48),), "auto", NORM, SCALE, optimizer=optim.SGD)
    whole_bytes = replace(training, accumulate=1).run(None).plan.peak_bytes
    with pytest.raises(graphopt.BudgetError) as caught:
        training.run(1024)
    least_bytes = caught.value.minimum_bytes
    for budget_bytes in ((whole_bytes + least_bytes) // 2, least_bytes):
        ran = training.run(budget_bytes)
        micro_rows, predicted_bytes = ran.micro_rows, ran.plan.peak_bytes
        print(
            f"auto: {micro_rows} rows, {budget_bytes:,} predicted {predicted_bytes:,} measured {ran.measured_bytes:,}"
        )
        assert ran.measured_bytes <= budget_bytes
        assert abs(predicted_bytes - ran.measured_bytes) <= 0.01 * ran.measured_bytes
        fixed = replace(training, accumulate=-(-48 // micro_rows)).run(None)
        assert fixed.micro_rows == micro_rows and differences(ran.state, fixed.state) == {}


class Wide(nn.Module):
    """16 MiB of parameters in 16 layers, and little else."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(16)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().mean()


def test_an_accumulating_step_holds_no_second_set_of_gradients() -> None:
    x = torch.randn(32, 512)
    model = Wide()
    step = graphopt.train_step(model, None, optim.SGD(model.parameters(), 0.1), accumulate=2, cost_model="roofline")
    step(x)
    ours = resident(step, ((x,), {}))
    ours_bytes = peak_bytes(lambda: step(x), ours, "cpu") - unique_bytes(ours)
    loop = EagerLoop(Wide(), optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), accumulate=2)
    loop.model(x).backward()
    parameters = list(loop.model.parameters())
    theirs = [*parameters, *(p.grad for p in parameters if p.grad is not None), x]

    def micro_steps() -> None:
        for _, ((part,), _) in loop.parts(((x,), {})):
            (loop.model(part) * 0.5).backward()

    eager_bytes = peak_bytes(micro_steps, theirs, "cpu") - unique_bytes(theirs)
    print(f"transient: {ours_bytes / MIB:.2f} MiB, eager {eager_bytes / MIB:.2f} MiB")
    assert ours_bytes <= 1.1 * eager_bytes
