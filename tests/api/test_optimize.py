"""optimize(): the model stays what it is, trains inside its bytes, and says so when it cannot."""

from __future__ import annotations

import copy
import functools
import gc
import io
import weakref
from collections.abc import Iterable, Sequence

import pytest
import torch
from torch import fx, nn

import graphopt
from graphopt.api import optimize, verify
from graphopt.cost_models import COST_MODELS, OpCost
from graphopt.device.measure import peak_bytes
from graphopt.plan import resident
from graphopt.verify.step_result import differences, run_step


class Blocks(nn.Module):
    """A residual MLP with dropout and BatchNorm: activations outweigh parameters by far."""

    def __init__(self, width: int = 32, depth: int = 6, breaks: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(depth))
        self.head = nn.Linear(width, 1)
        self.breaks = breaks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.run(x, 0, 3)
        if self.breaks:
            torch._dynamo.graph_break()
        return self.head(self.run(x, 3, len(self.layers))).sum()

    def run(self, x: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """The blocks from `first` to before `last`."""
        for layer, norm in zip(self.layers[first:last], self.norms[first:last], strict=True):
            x = x + nn.functional.dropout(norm(layer(x)).relu(), 0.2, self.training)
        return x


@pytest.fixture
def model() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


BATCH = (torch.randn(512, 32, generator=torch.Generator().manual_seed(1)),)


def budget_of(share: float) -> int:
    """A share of what Blocks take in eager on BATCH, but not less than they need."""
    eager_bytes, least_bytes = bytes_of_blocks()
    return max(int(eager_bytes * share), least_bytes)


@functools.cache
def bytes_of_blocks() -> tuple[int, int]:
    """What Blocks take in eager on BATCH, and the least that they need."""
    with torch.random.fork_rng(devices=[]):
        plan = optimize.plan_model(Blocks(), BATCH, mem_budget="1GiB").plan
    return plan.eager_peak_bytes, plan.minimum_bytes


def measured(model: nn.Module, *batch: torch.Tensor) -> int:
    def step() -> None:
        model(*batch).backward()

    step()
    model.zero_grad(set_to_none=True)
    peak = peak_bytes(step, [*model.parameters(), *model.buffers(), *batch], "cpu")
    model.zero_grad(set_to_none=True)
    return peak


def test_same_object_class_and_keys(model: Blocks) -> None:
    keys, kind = list(model.state_dict()), type(model)
    optimized = graphopt.optimize(model, "64MiB", example_inputs=BATCH)
    assert optimized is model and type(model) is kind and list(model.state_dict()) == keys
    assert isinstance(model.graphopt.plan, graphopt.Plan)
    assert "eager" in str(model.graphopt.report)
    assert "def forward" in model.graphopt.graph_module.print_readable(print_output=False)
    assert model.graphopt.restore() is model
    assert not hasattr(model, "graphopt") and model._compiled_call_impl is None


@pytest.mark.fast(2)
@pytest.mark.parametrize("share", [0.7, 0.45, 0.0])
def test_trains_inside_the_budget_with_eagers_results(model: Blocks, share: float) -> None:
    eager = run_step(model, model._call_impl, BATCH, {})
    budget = budget_of(share)
    graphopt.optimize(model, budget, example_inputs=BATCH)
    plan = model.graphopt.plan
    assert plan.recomputed and plan.peak_bytes <= budget
    assert 0 < plan.bound_overhead <= plan.overhead and plan.above_optimum < plan.overhead
    assert differences(eager, run_step(model, model, BATCH, {})) == []
    peak = measured(model, *BATCH)
    assert peak <= budget and abs(plan.peak_bytes - peak) <= 0.02 * peak


def test_many_steps_train_as_eager_does(model: Blocks) -> None:
    twin = copy.deepcopy(model)
    graphopt.optimize(model, budget_of(0.5))

    def train(module: nn.Module) -> list[float]:
        torch.manual_seed(7)
        optimizer = torch.optim.AdamW(module.parameters())
        losses = []
        for _ in range(4):
            loss = module(*BATCH)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert train(model) == train(twin)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name


def test_planning_runs_nothing_that_the_model_could_notice(model: Blocks) -> None:
    generator, buffers = torch.get_rng_state(), copy.deepcopy(dict(model.named_buffers()))
    graphopt.optimize(model.eval(), "64MiB", example_inputs=BATCH)
    assert torch.equal(torch.get_rng_state(), generator) and not model.training
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_eval_and_no_grad_run_as_before(model: Blocks) -> None:
    graphopt.optimize(model, "64MiB")
    expected = model.eval()._call_impl(*BATCH)
    assert torch.equal(model(*BATCH), expected)
    with torch.no_grad():
        model.train()(*BATCH)
    with pytest.raises(graphopt.UsageError, match="nothing is planned yet"):
        model.graphopt.plan  # noqa: B018


def test_a_new_shape_is_planned_anew_inside_the_budget(model: Blocks) -> None:
    graphopt.optimize(model, budget_of(0.6))
    model(*BATCH).backward()
    first = model.graphopt.plan
    smaller = (torch.randn(300, 32),)
    eager = run_step(model, model._call_impl, smaller, {})
    assert differences(eager, run_step(model, model, smaller, {})) == []
    second = model.graphopt.plan
    assert second.graphs[0].graph_hash != first.graphs[0].graph_hash
    with pytest.raises(graphopt.BudgetError):
        model(torch.randn(8192, 32))


def test_below_the_minimum_there_is_an_error_that_helps(model: Blocks) -> None:
    _, minimum = bytes_of_blocks()
    graphopt.optimize(copy.deepcopy(model), minimum, example_inputs=BATCH)
    with pytest.raises(graphopt.BudgetError) as caught:
        graphopt.optimize(model, minimum - 1, example_inputs=BATCH)
    assert caught.value.minimum_bytes == minimum and caught.value.exit_code == 3
    text = str(caught.value)
    assert "parameters" in text and "alive while" in text and "test_optimize.py" in text
    with pytest.raises(graphopt.BudgetError, match="micro-batch of about"):
        graphopt.optimize(Blocks(), int(minimum * 0.8), example_inputs=BATCH)
    assert not hasattr(model, "graphopt")


def test_optimizer_state_and_reserve_are_counted(model: Blocks) -> None:
    parameters = sum(p.numel() * 4 for p in model.parameters())
    optimizer = torch.optim.Adam(model.parameters())
    graphopt.optimize(model, "64MiB", example_inputs=BATCH, optimizer=optimizer, reserve="1MiB")
    plan = model.graphopt.plan
    assert plan.resident_bytes["reserve"] == 2**20
    assert 2 * parameters <= plan.resident_bytes["optimizer"] <= 2 * parameters + 8 * len(list(model.parameters()))
    assert plan.peak_bytes >= sum(plan.resident_bytes.values())


def test_more_budget_never_costs_more_time(model: Blocks) -> None:
    most, least = bytes_of_blocks()
    overheads = [
        optimize.plan_model(copy.deepcopy(model), BATCH, mem_budget=budget).plan.overhead
        for budget in (least, (least + most) // 2, most)
    ]
    assert overheads == sorted(overheads, reverse=True) and overheads[-1] == 0.0 and overheads[0] > 0


@pytest.mark.parametrize("planner", ["sqrt_n", "chain", "search"])
def test_every_planner_can_be_named(model: Blocks, planner: str) -> None:
    eager = run_step(model, model._call_impl, BATCH, {})
    graphopt.optimize(model, budget_of(0.7), example_inputs=BATCH, planner=planner)
    assert model.graphopt.plan.planner == planner and model.graphopt.plan.recomputed
    assert differences(eager, run_step(model, model, BATCH, {})) == []


def test_a_model_that_breaks_shares_one_budget() -> None:
    torch.manual_seed(0)
    budget = budget_of(0.7)
    model = Blocks(breaks=True)
    eager = run_step(model, model._call_impl, BATCH, {})
    graphopt.optimize(model, budget, example_inputs=BATCH)
    report = model.graphopt.report
    assert len(report.graphs) == 2 and "test_optimize.py" in report.graphs[0].break_reason
    assert all(graph.plan.budget_bytes < budget for graph in report.graphs) and report.plan.recomputed
    assert differences(eager, run_step(model, model, BATCH, {})) == []
    assert measured(model, *BATCH) <= budget
    assert "test_optimize.py" in str(report)


@pytest.mark.fast(1)
@pytest.mark.parametrize("planner", ["none", "sqrt_n", "reorder"])
def test_shares_are_those_that_the_named_planner_can_keep_to(planner: str) -> None:
    """`auto` reorders what is not recomputed, and so may need less than eager's order at the same speed."""

    def planned(budget: int) -> nn.Module:
        torch.manual_seed(0)
        torch._dynamo.reset()
        options = {"example_inputs": BATCH, "planner": planner, "cost_model": "roofline"}
        return graphopt.optimize(TwoTails(), budget, **options)  # type: ignore[arg-type]

    free = planned(1 << 40)
    assert not free.graphopt.plan.recomputed
    with pytest.raises(graphopt.BudgetError) as least:
        planned(1)
    model = planned(least.value.minimum_bytes)
    assert model.graphopt.plan.peak_bytes <= least.value.minimum_bytes <= free.graphopt.plan.peak_bytes
    with pytest.raises(graphopt.BudgetError):
        planned(least.value.minimum_bytes - 1)


class TwoTails(nn.Module):
    """Two graphs; in the second, eager's order makes a large tensor long before it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.narrow = nn.Linear(32, 32), nn.Linear(32, 256), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        torch._dynamo.graph_break()
        wide = self.wide(x)
        for _ in range(3):
            x = self.narrow(x).relu()
        return wide.mean() + x.mean()


class Chunks(nn.Module):
    """Two outputs that are halves of one tensor, row by row, one without use, and part of another."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 64), nn.Linear(32, 64)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, spread = self.encoder(x.tanh()).chunk(2, -1)
        code = mean.sin() + spread.sin()
        return mean, spread, code, self.decoder(code.sin())[:100]


@pytest.mark.parametrize("compiled", [False, True])
def test_tangents_of_views_are_dense_and_none_is_copied(compiled: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2048, 64)

    def step(model: nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        outputs = model(x)
        # of all outputs: a tangent that does not come takes no bytes
        ((outputs[0] * outputs[1]).mean() + outputs[2].mean() + outputs[3].square().mean()).backward()

    model = Chunks()
    step(model)
    eager = [p.grad for p in model.parameters()]
    with pytest.raises(graphopt.BudgetError) as least:
        graphopt.optimize(model, 1, example_inputs=x)
    budget = least.value.minimum_bytes
    if compiled:
        run: nn.Module = torch.compile(model, backend="graphopt", options={"mem_budget": budget})  # type: ignore[assignment]
    else:
        run = graphopt.optimize(model, budget, example_inputs=x)
    step(run)
    assert all(torch.equal(a, p.grad) for a, p in zip(eager, model.parameters(), strict=True))
    model.zero_grad(set_to_none=True)
    assert 0.98 * budget <= peak_bytes(lambda: step(run), [*model.parameters(), x], "cpu") <= budget


def test_a_module_of_torchs_own_is_one_graph() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(4)))
    batch = (torch.randn(64, 16),)
    eager = run_step(model, model._call_impl, batch, {})
    graphopt.optimize(model, "1MiB", example_inputs=batch)
    assert len(model.graphopt.plan.graphs) == 1
    assert differences(eager, run_step(model, model, batch, {})) == []


def test_copies_and_pickles_are_plain_models(model: Blocks) -> None:
    graphopt.optimize(model, "64MiB", example_inputs=BATCH)
    for twin in (copy.deepcopy(model), _through_a_file(model)):
        assert twin.graphopt is None
        torch.manual_seed(3)
        loss = twin(*BATCH)
        torch.manual_seed(3)
        assert torch.equal(loss, model(*BATCH))


def _through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "name a budget"),
        ({"mem_budget": "8G"}, "two readings"),
        ({"mem_budget": "-3MiB"}, "cannot read"),
        ({"mem_budget": 0}, "more than zero"),
        ({"mem_budget": "1MiB", "planner": "magic"}, "unknown planner 'magic'; choose one of none"),
        ({"mem_budget": "1MiB", "cost_model": "magic"}, "unknown cost model"),
        ({"mem_budget": "1MiB", "plan_seconds": -1}, "plan_seconds: expected"),
        ({"mem_budget": "1MiB", "plan_seconds": float("nan")}, "plan_seconds: expected"),
        ({"mem_budget": "1MiB", "example_inputs": 3}, "expected a tensor"),
        ({"mem_budget": "1MiB", "verify": True}, "needs example_inputs"),
        ({"mem_budget": "1MiB", "plan": 3}, "path of one"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(graphopt.GraphoptError, match=message):
        graphopt.optimize(nn.Linear(2, 2), **arguments)  # type: ignore[arg-type]


def test_a_model_that_returns_no_tensor_is_refused() -> None:
    class Silent(nn.Module):
        def forward(self, _x: torch.Tensor) -> str:
            return "nothing"

    with pytest.raises(graphopt.GraphoptError):
        verify.verify_model(Silent(), BATCH, mem_budget="1MiB")


def test_a_model_that_cannot_be_captured_spoils_no_other(model: Blocks) -> None:
    class Silent(nn.Module):
        def forward(self, _x: torch.Tensor) -> str:
            return "nothing"

    with pytest.raises(graphopt.CaptureError, match="nothing of Silent could be captured"):
        verify.verify_model(Silent(), BATCH, mem_budget="1MiB")
    assert optimize.plan_model(model, BATCH, mem_budget="64MiB").plan.graphs
    assert optimize.plan_model(nn.Sequential(nn.Linear(32, 4)), BATCH, mem_budget="64MiB").plan.graphs


def test_inputs_on_two_devices_are_refused(model: Blocks) -> None:
    with pytest.raises(graphopt.CaptureError, match=r"is on cpu; an input of shape .* is on meta"):
        graphopt.optimize(model, "1MiB", example_inputs=(BATCH[0].to("meta"),))


def test_what_torch_cannot_capture_is_named(model: Blocks) -> None:
    with pytest.raises(graphopt.CaptureError, match="could not capture the model"):
        graphopt.optimize(model, "1MiB", example_inputs=(torch.randn(4, 31),))


def test_a_batch_is_not_held_after_its_step(model: Blocks) -> None:
    graphopt.optimize(model, "64MiB")
    batch = torch.randn(512, 32)
    gone = weakref.ref(batch)
    model(batch).backward()
    del batch
    gc.collect()
    assert gone() is None


def test_ops_that_could_not_be_measured_are_said(model: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    real = COST_MODELS["profiled"]

    def some(nodes: Sequence[fx.Node]) -> list[OpCost]:
        return [OpCost(c.seconds, 0) if i % 2 else c for i, c in enumerate(real(nodes))]

    monkeypatch.setitem(COST_MODELS, "auto", some)
    with pytest.warns(UserWarning, match="ops could not be measured, first .* at .*test_optimize.py"):
        graphopt.optimize(model, "64MiB", example_inputs=BATCH)


def test_optimize_wants_a_module() -> None:
    with pytest.raises(graphopt.UsageError, match=r"takes an nn\.Module"):
        graphopt.optimize(lambda x: x, "1MiB")  # type: ignore[arg-type]


def test_gradients_that_are_one_tensor_and_unused_and_frozen_parameters() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Parameter(torch.randn(64)), nn.Parameter(torch.randn(64))
            self.tied = nn.Linear(64, 64, bias=False)
            self.frozen = nn.Linear(64, 64).requires_grad_(False)
            self.unused = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.tied(x + self.left + self.right).tanh()
            return (self.frozen(y) @ self.tied.weight).exp().mean()

    torch.manual_seed(0)
    model, batch = Odd(), (torch.randn(256, 64) * 0.1,)
    eager = run_step(model, model._call_impl, batch, {})
    plan = optimize.plan_model(copy.deepcopy(model), batch, mem_budget="1GiB").plan
    graphopt.optimize(model, plan.minimum_bytes, example_inputs=batch)
    assert differences(eager, run_step(model, model, batch, {})) == []
    assert measured(model, *batch) <= plan.minimum_bytes
    model(*batch).backward()
    assert model.unused.weight.grad is None and model.frozen.weight.grad is None


@pytest.mark.slow
def test_views_of_a_value_made_again_do_not_keep_its_first_copy() -> None:
    """Gates split from one tensor, evicted and made again many times: once four times over its plan."""

    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(16, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = c = x.new_zeros(x.shape[0], 64)
            for step in range(x.shape[1]):
                h, c = self.cell(x[:, step], (h, c))
            return h.sum()

    torch.manual_seed(0)
    model, batch = Cells(), (torch.randn(32, 24, 16),)
    eager = run_step(model, model._call_impl, batch, {})
    least = optimize.plan_model(copy.deepcopy(model), batch, mem_budget="1GiB").plan.minimum_bytes
    graphopt.optimize(model, least, example_inputs=batch)
    assert measured(model, *batch) <= least
    assert differences(eager, run_step(model, model, batch, {})) == []


def test_on_cuda_what_others_hold_is_counted(model: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure, with the device's allocator played by the test; the real one is in tests/gpu."""

    def all_bytes(tensors: Iterable[torch.Tensor], _device: torch.device) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    known = all_bytes((*model.parameters(), *model.buffers(), *BATCH), torch.device("cpu"))
    monkeypatch.setattr(resident, "unique_storage_bytes", all_bytes)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: known + 12345)
    assert resident.other_bytes(model, BATCH, None, torch.device("cuda", 0)) == 12345 + resident.CUDA_LOOSE_BYTES
    ours = torch.empty(1000)
    held = resident.other_bytes(model, BATCH, None, torch.device("cuda", 0), [ours])
    assert held == 12345 - 4000 + resident.CUDA_LOOSE_BYTES
    assert resident.other_bytes(model, BATCH, None, torch.device("cpu")) == resident.LOOSE_BYTES
