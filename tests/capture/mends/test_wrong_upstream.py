"""What PyTorch traces wrongly: that it still does, and that it is told of."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphopt
from graphopt.verify.step_result import differences, run_step


class Cube(torch.autograd.Function):
    """Its backward is another function than that of its forward."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient * 625 * x**2

    generate_vmap_rule = True


class Pinv(nn.Module):
    def __init__(self, dtype: torch.dtype, how: Any) -> None:
        super().__init__()
        self.w, self.how = nn.Parameter(torch.randn(5, 4, dtype=dtype)), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.how(self.w) @ x.to(self.w.dtype)).abs().square().mean()


class Transformed(nn.Module):
    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.layer, self.transform = nn.Linear(5, 5), transform

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.transform(self.layer(x)).mean()


X = torch.ones(5, 3)


class Doubled(torch.autograd.Function):
    """Writes its input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(x)
        x.mul_(2)
        return x

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


class Writes(nn.Module):
    """Behind a graph break, in front of one, or without."""

    def __init__(self, breaks: str) -> None:
        super().__init__()
        self.first, self.second, self.breaks = nn.Linear(5, 4), nn.Linear(4, 3), breaks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        if self.breaks == "in front":
            torch._dynamo.graph_break()
        twice = Doubled.apply(h)
        if self.breaks == "behind":
            torch._dynamo.graph_break()
        return self.second(twice)


PINV = [torch.linalg.pinv, torch.pinverse, lambda w: w.pinverse()]
TRANSFORMS = [
    torch.func.grad(lambda h: Cube.apply(h).sum()),
    torch.func.vmap(torch.func.grad(lambda h: Cube.apply(h).sum())),
    torch.func.vmap(lambda h: Cube.apply(h)),
    lambda h: torch.func.jacrev(Cube.apply)(h[0]),
]
WRONG = [
    *((lambda how=how: Pinv(torch.complex64, how), X, "linalg.pinv of complex numbers at") for how in PINV),
    *((lambda t=t: Transformed(t), X.T, "Cube at .* is inside of a torch.func transform") for t in TRANSFORMS),
    (lambda: Writes("in front"), X.T, "writes its input in place"),
]


@pytest.mark.fast(1)
@pytest.mark.parametrize(("model", "x", "said"), WRONG)
def test_it_is_wrong_in_torch_and_told_of_once(model: Any, x: torch.Tensor, said: str) -> None:
    torch.manual_seed(0)
    made = model()
    eager = run_step(made, made._call_impl, (x,), {})
    compiled = run_step(made, torch.compile(made._call_impl, backend="aot_eager"), (x,), {})
    assert any(not gap.tolerable for gap in differences(eager, compiled)), "mended upstream: take the warning away"
    with pytest.warns(UserWarning, match=said) as caught:
        graphopt.optimize(made, "1GiB", example_inputs=x, cost_model="roofline")
    assert sum("Wrong in PyTorch itself" in str(warning.message) for warning in caught) == 1
    with pytest.raises(graphopt.VerificationError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graphopt.optimize(made, "1GiB", example_inputs=x, cost_model="roofline", verify=True)


@pytest.mark.fast(5)
@pytest.mark.parametrize(
    "model",
    [
        lambda: Pinv(torch.float32, torch.linalg.pinv),
        lambda: Pinv(torch.complex64, lambda w: w.mH.sin()),
        lambda: Transformed(Cube.apply),
        lambda: Transformed(torch.func.grad(lambda h: F.silu(h).sum())),
        lambda: Writes(""),
        lambda: Writes("behind"),
    ],
    ids=["real", "no pinv", "no transform", "no function", "no break", "break behind"],
)
def test_nothing_is_said_of_what_is_right(model: Any) -> None:
    torch.manual_seed(0)
    made = model()
    x = X if isinstance(made, Pinv) else X.T
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="graphopt:")
        graphopt.optimize(made, "1GiB", example_inputs=x, cost_model="roofline", verify=True)


def test_a_training_step_says_it_too() -> None:
    made = Pinv(torch.complex64, torch.linalg.pinv)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="linalg.pinv of complex numbers"):
        graphopt.train_step(made, None, optimizer, "1GiB", example_inputs=X, cost_model="roofline")
