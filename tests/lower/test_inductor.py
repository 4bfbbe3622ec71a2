"""Plans that run through Inductor: inside the budget as measured, right to rounding, told where they are not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphopt
from graphopt.api.verify import verify_model
from graphopt.device.measure import peak_bytes
from graphopt.lower import halves

X = torch.randn(4, 128, 64, generator=torch.Generator().manual_seed(0))


def blocks(count: int = 2, width: int = 64) -> nn.Sequential:
    """Linear layers with GELU and a norm between them: eager keeps six values a block, a compiled step three."""
    torch.manual_seed(0)
    layers = [
        [nn.Linear(width, 4 * width), nn.GELU(), nn.LayerNorm(4 * width), nn.Linear(4 * width, width)]
        for _ in range(count)
    ]
    return nn.Sequential(*(nn.Sequential(*each) for each in layers))


class Drawn(nn.Module):
    """Draws, running statistics and a counter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(64, 128), nn.BatchNorm1d(128), nn.Linear(128, 64)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        h = nn.functional.dropout(torch.tanh(self.norm(self.first(x))), 0.2)
        return self.last(h).square().mean() / self.calls


def plain_step(model: nn.Module, x: torch.Tensor = X[0]) -> torch.Tensor:
    for parameter in model.parameters():
        parameter.grad = None
    loss = model(x).square().mean()
    loss.backward()
    return loss.detach()


def assert_close(model: nn.Module, eager: nn.Module) -> None:
    """Gradients and buffers agree to a millionth of the largest gradient: sums are in another order, no more."""
    pairs = list(zip(model.parameters(), eager.parameters(), strict=True))
    scale = max(e.grad.abs().max().item() for _, e in pairs if e.grad is not None)
    for ours, theirs in pairs:
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None and theirs.grad is not None:
            assert (ours.grad - theirs.grad).abs().max().item() <= 2e-6 * scale
    for ours, theirs in zip(model.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_peaks_are_inside_the_budget_and_as_said() -> None:
    eager = blocks(4)
    known = [*eager.parameters(), X[0]]
    eager_bytes = peak_bytes(lambda: plain_step(eager), known, "cpu")
    plain_step(eager)
    for share in (1.0, 0.7):
        model = blocks(4)
        graphopt.optimize(model, int(share * eager_bytes), compiler="inductor")
        plain_step(model)
        assert_close(model, eager)
        plain_step(model)
        for parameter in model.parameters():
            parameter.grad = None
        measured = peak_bytes(lambda m=model: plain_step(m), [*model.parameters(), X[0]], "cpu")
        plan = model.graphopt.plan
        # what the optimizer's hooks and the loss outside of the model hold is some hundred bytes
        assert measured <= share * eager_bytes and abs(measured - plan.peak_bytes) <= 0.04 * measured
        assert plan.compiler == "inductor"
        report = model.graphopt.report
        assert report.compiled is not None and report.compiled.measured_bytes == plan.peak_bytes
        assert "Inductor" in str(report) and "measured; compiled" in str(report)
    assert plan.overhead > 0  # something is recomputed at the second


def test_a_budget_that_no_kernels_fit_is_refused_with_what_was_measured() -> None:
    model = blocks(1)
    with pytest.raises(graphopt.BudgetError, match="the kernels of the smallest were measured at") as caught:
        graphopt.optimize(model, 500_000, compiler="inductor", example_inputs=X[0])
    least = caught.value.minimum_bytes
    assert least > 500_000
    graphopt.optimize(model, least, compiler="inductor", example_inputs=X[0])
    assert model.graphopt.plan.peak_bytes <= least


def test_draws_statistics_and_numbers_that_change_are_eagers() -> None:
    model, eager = Drawn(), Drawn()
    graphopt.optimize(model, "64MiB", compiler="inductor")
    for step in range(4):
        for each in (eager, model):
            torch.manual_seed(step)
            each.zero_grad()
            each(X[step]).backward()
            each.drawn = torch.rand(1)  # type: ignore[assignment]
        assert torch.equal(model.drawn, eager.drawn)  # type: ignore[arg-type]
        assert_close(model, eager)
    # one for the number as it first was, one for any
    assert len(model.graphopt.session.graphs) == 2  # type: ignore[union-attr]


def accumulated(model: nn.Module) -> None:
    for x in X:
        model(x).square().mean().backward()


def two_forwards(model: nn.Module) -> None:
    (model(X[0]).square().mean() + model(X[1]).square().mean()).backward()


def another_shape(model: nn.Module) -> None:
    model(X[0]).square().mean().backward()
    model.zero_grad()
    model(X[1][:96]).square().mean().backward()


def between_eval(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        model(X[2])
    model.train()
    model(X[3]).square().mean().backward()


@pytest.mark.fast(1)
@pytest.mark.parametrize("loop", [accumulated, two_forwards, another_shape, between_eval])
def test_loops(loop: Callable[[nn.Module], None]) -> None:
    model, eager = blocks(1), blocks(1)
    graphopt.optimize(model, "16MiB", compiler="inductor")
    for each in (model, eager):
        loop(each)
    assert_close(model, eager)
    assert all(step.measured_bytes <= 16 * 2**20 for step in model.graphopt.history)


class Breaks(nn.Module):
    """Two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.back = blocks(1), blocks(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.front(x)
        torch._dynamo.graph_break()
        return self.back(h)


def test_a_model_of_several_graphs() -> None:
    model, eager = Breaks(), Breaks()
    graphopt.optimize(model, "16MiB", compiler="inductor")
    for each in (model, eager):
        plain_step(each)
    assert_close(model, eager)
    compiled = [graph.compiled for graph in model.graphopt.session.graphs]  # type: ignore[union-attr]
    assert all(each.lowered is not None for graph in compiled for each in graph.values())


def test_as_a_backend_of_torch_compile() -> None:
    model, eager = blocks(1), blocks(1)
    options = {"mem_budget": "16MiB", "compiler": "inductor"}
    compiled = torch.compile(model, backend="graphopt", options=options)
    plain_step(compiled)
    plain_step(eager)
    assert_close(model, eager)
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"take .* where .* are left for them"):
        torch.compile(model, backend="graphopt", options={**options, "mem_budget": 600_000})(X[0])


def mean_squares(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().mean()


@pytest.mark.fast(1)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_train_step(accumulate: int) -> None:
    trained = {}
    for compiler in ("eager", "inductor"):
        model = blocks(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        clip = graphopt.ClipNorm(1.0)
        step = graphopt.train_step(
            model, mean_squares, optimizer, "16MiB", accumulate=accumulate, clip=clip, compiler=compiler
        )
        trained[compiler] = [float(step(X[i], X[i + 1]).loss) for i in range(3)], model
        assert step.plan.compiler == compiler
        # gradients of the window, an update: what is beside the kernels is the plan's own
        assert all(each.measured_bytes <= each.predicted_bytes for each in step.history)
    assert trained["inductor"][0] == pytest.approx(trained["eager"][0], rel=1e-5)
    for ours, theirs in zip(trained["inductor"][1].parameters(), trained["eager"][1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_verification_is_by_float64_and_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = blocks(1)
    found = verify_model(
        copy.deepcopy(model), (X[0], X[1]), mean_squares, mem_budget="16MiB", compiler="inductor", time_rounds=0
    )
    assert found.equal and not found.bitwise and "float64" in " ".join(found.lines)
    lower = halves.lower

    def wrong(module: torch.fx.GraphModule, *, is_backward: bool) -> Callable[[list[object]], object]:
        run = lower(module, is_backward=is_backward)

        def scaled(args: list[object]) -> object:
            results = run(args)
            if not is_backward:
                return results
            return [each * 1.0005 if isinstance(each, torch.Tensor) else each for each in results]  # type: ignore[attr-defined]

        return scaled

    monkeypatch.setattr(halves, "lower", wrong)
    with pytest.raises(graphopt.VerificationError, match="changes the model's results by more than rounding"):
        verify_model(model, (X[0], X[1]), mean_squares, mem_budget="16MiB", compiler="inductor", time_rounds=0)


def test_kernels_that_take_no_made_up_numbers_are_measured_in_the_first_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object) -> int:
        raise ValueError("lengths must be positive")

    monkeypatch.setattr(halves, "trial_peak_bytes", refuses)
    model = blocks(1)
    with caplog.at_level("WARNING", logger="graphopt"):
        graphopt.optimize(model, "16MiB", compiler="inductor", example_inputs=X[0])
    assert "lengths must be positive" in caplog.text
    plain_step(model)
    (step,) = model.graphopt.history
    assert 0 < step.measured_bytes <= 16 * 2**20


def test_an_unknown_compiler_is_refused() -> None:
    with pytest.raises(graphopt.UsageError, match="expected 'eager' or 'inductor'"):
        graphopt.optimize(blocks(1), "1GiB", compiler="nvcc")  # type: ignore[arg-type]


class Pools(nn.Module):
    """Average pools whose last windows reach beyond the edge."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.flat, self.deep = nn.Conv2d(2, 3, 1), nn.Conv3d(1, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.flat(x)
        pooled = nn.functional.avg_pool2d(flat, 2, ceil_mode=True), nn.functional.avg_pool2d(flat, 3, 2, 1, True)
        deep = nn.functional.avg_pool3d(self.deep(x[:, None]), 2, ceil_mode=True)
        line = nn.functional.avg_pool1d(flat[:, :, 0], 2, ceil_mode=True)
        return sum((each.square().sum() for each in (*pooled, deep, line)), torch.zeros(()))


@pytest.mark.slow
def test_average_pools_that_reach_beyond_the_edge() -> None:
    """Inductor's own gradients are off by a quarter there."""
    model = Pools()
    eager, x = copy.deepcopy(model), torch.randn(2, 2, 5, 5)
    graphopt.optimize(model, "1MiB", compiler="inductor", example_inputs=x)
    model(x).backward()
    eager(x).backward()
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)
