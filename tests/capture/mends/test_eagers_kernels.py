"""Ops for which tracing takes functions in Python: the kernels that eager runs are traced, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch.nn import functional as F

import graphopt
from graphopt.capture.mends.eagers_kernels import KEYS, OPS, eagers_kernels
from graphopt.device.measure import peak_bytes
from graphopt.verify.step_result import differences, run_step

aten = torch.ops.aten
Work = Callable[[Tensor], Tensor]

#: Not taken away: replaced in Dynamo's graph or by a pass of ours, or no more than moves of data, with the same bits.
LEFT = {
    *("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu", "aten::dropout"),
    *("aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm"),
    *("aten::pad_sequence", "aten::broadcast_tensors", "aten::unsafe_chunk", "aten::tensor_split", "aten::one_hot"),
    *("aten::stft", "aten::istft", "aten::empty", "aten::matmul"),
}


class Weighted(nn.Module):
    """The square of what is done with a parameter times the input."""

    def __init__(self, work: Work, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.work = nn.Parameter(torch.randn(shape)), work

    def forward(self, x: Tensor) -> Tensor:
        return self.work(self.weight * x).float().square().sum()


class Together(nn.Module):
    def __init__(self, parts: list[Weighted]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts]).sum()


class Pyramid(nn.Module):
    """Made smaller and larger again between convolutions."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.interpolate(self.first(x).relu(), scale_factor=0.5, mode=self.mode).exp()
        return self.second(F.interpolate(h, size=x.shape[2:], mode=self.mode).sigmoid()).square().mean()


def resize(h: Tensor, **how: Any) -> Tensor:
    return F.interpolate(h, **how)


def last(h: Tensor) -> Tensor:
    return h.contiguous(memory_format=torch.channels_last)


def margins(h: Tensor, **how: Any) -> Tensor:
    return F.multi_margin_loss(h, torch.tensor([0, 3, 1]), **how)


LABELS = torch.tensor([[3, 0, -1, 1], [0, -1, 2, 3]])
SCALES: tuple[dict[str, Any], ...] = (
    *({"scale_factor": scale} for scale in (0.5, 0.7, 1.0, 1.1, 1.7, 2.0)),
    *({"size": size} for size in (1, 5, 8, 9)),
    {"scale_factor": 1.3, "recompute_scale_factor": True},
)
SIDES = {"linear": 1, "trilinear": 3}
SIZES = [
    *((mode, SIDES.get(mode, 2)) for mode in ("linear", "bilinear", "bicubic", "trilinear")),
    *((mode, sides) for mode in ("nearest", "nearest-exact") for sides in (1, 2, 3)),
]
FUNCTIONS: dict[str, tuple[Work, tuple[int, ...]]] = {
    "corners": (partial(resize, scale_factor=1.1, mode="bilinear", align_corners=True), (1, 2, 8, 8)),
    "antialias": (partial(resize, scale_factor=0.7, mode="bilinear", antialias=True), (1, 2, 9, 9)),
    "antialias, cubic": (partial(resize, scale_factor=1.1, mode="bicubic", antialias=True), (1, 2, 9, 9)),
    "channels last": (lambda h: resize(last(h), scale_factor=1.6, mode="bicubic"), (2, 3, 8, 8)),
    "bfloat16": (lambda h: resize(h.bfloat16(), scale_factor=1.6, mode="bicubic"), (2, 3, 8, 8)),
    "op": (lambda h: aten.upsample_bicubic2d.default(h, [12, 12], False, 1.1, 1.1), (2, 3, 11, 11)),
    "labels": (lambda h: F.multilabel_margin_loss(h, LABELS), (2, 4)),
    "labels of each": (lambda h: F.multilabel_margin_loss(h, LABELS, reduction="none"), (2, 4)),
    "labels of one": (lambda h: F.multilabel_margin_loss(h, LABELS[0], reduction="sum"), (4,)),
    "margins": (margins, (3, 7)),
    "margins, squared": (partial(margins, p=2, margin=0.3, reduction="sum", weight=torch.arange(7.0)), (3, 7)),
    "margins of each": (partial(margins, p=2, reduction="none"), (3, 7)),
    "softshrink": (lambda h: F.softshrink(h.bfloat16(), 1.3), (4, 50)),
    "hardshrink": (lambda h: F.hardshrink(h, 0.3), (4, 50)),
    "vector by matrices": (lambda h: torch.linspace(-1, 1, 50).exp() @ h, (3, 50, 33)),
    "matrices": (lambda h: h @ h.sin().mT, (2, 5, 6)),
    "stft": (lambda h: torch.view_as_real(torch.stft(h, 16, return_complex=True)), (2, 100)),
    "pad": (lambda h: nn.utils.rnn.pad_sequence([h[:3], h[1:2], h], padding_value=0.5), (5, 4)),
}


def assert_equals_eager(model: nn.Module, x: Tensor) -> None:
    eager = copy.deepcopy(model)
    expected = run_step(eager, eager._call_impl, (x,), {})
    graphopt.optimize(model, "1GiB", example_inputs=x, cost_model="roofline")
    assert not differences(expected, run_step(model, model, (x,), {}))


@pytest.mark.fast(5)
@pytest.mark.parametrize(("mode", "sides"), SIZES)
@pytest.mark.parametrize("n", [8, 11])
def test_interpolation_equals_eager(mode: str, sides: int, n: int) -> None:
    """All in one graph, each with a parameter of its own."""
    torch.manual_seed(0)
    parts = [Weighted(partial(resize, mode=mode, **how), (1, 2, *([n] * sides))) for how in SCALES]
    assert_equals_eager(Together(parts), torch.randn(1, 2, *([n] * sides)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_equal_eager(name: str) -> None:
    torch.manual_seed(0)
    work, shape = FUNCTIONS[name]
    assert_equals_eager(Weighted(work, shape), torch.randn(shape))


WRONG = {
    "scale": (partial(resize, scale_factor=1.1, mode="bilinear"), (1, 1, 9, 9)),
    "scale, nearest": (partial(resize, scale_factor=1.1, mode="nearest"), (1, 1, 9, 9)),
    "gradient": (partial(resize, scale_factor=1.1, mode="bicubic"), (1, 1, 8, 8)),
    "labels": FUNCTIONS["labels"],
    "margins": FUNCTIONS["margins"],
    "softshrink": FUNCTIONS["softshrink"],
    "vector by matrices": FUNCTIONS["vector by matrices"],
}


@pytest.mark.parametrize("name", WRONG)
def test_torch_traces_other_numbers(name: str) -> None:
    torch.manual_seed(0)
    work, shape = WRONG[name]
    model, x = Weighted(work, shape), torch.randn(shape)
    eager = run_step(model, model, (x,), {})
    traced = run_step(model, torch.compile(model, backend="aot_eager"), (x,), {})
    assert differences(eager, traced), "mended upstream: take the mend away"


def test_no_op_has_a_function_in_python_that_nobody_has_compared() -> None:
    found = set()
    for name in {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("aten::")}:
        packet = getattr(aten, name.removeprefix("aten::"), None)
        for overload in [] if packet is None else packet.overloads():
            op = getattr(packet, overload)
            if any(key in op.py_kernels for key in KEYS):
                found.add(op)
    assert {op.name().split(".")[0] for op in found - set(OPS)} == LEFT
    assert found >= set(OPS), "torch has taken functions away: so should we"


def test_afterwards_all_is_as_before() -> None:
    ops = (*OPS, aten.dropout.default)
    before = [dict(op.py_kernels) for op in ops]
    with eagers_kernels(), eagers_kernels():
        assert not any(key in op.py_kernels for op in OPS for key in KEYS)
    assert [dict(op.py_kernels) for op in ops] == before
    assert aten.matmul.default.py_kernels[DispatchKey.CompositeImplicitAutograd]


@pytest.mark.fast(5)
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_the_smallest_budget_holds(mode: str, form: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = Pyramid(mode).to(memory_format=form)
    x = torch.randn(4, 3, 64, 64).to(memory_format=form)
    eager = copy.deepcopy(model)
    resident = [*model.parameters(), x]
    with pytest.raises(graphopt.BudgetError) as error:
        graphopt.optimize(model, "1B", example_inputs=x)
    graphopt.optimize(model, error.value.minimum_bytes, example_inputs=x)
    peak = peak_bytes(lambda: model(x).backward(), resident, "cpu")
    assert error.value.minimum_bytes - 1024 <= peak <= error.value.minimum_bytes
    eager(x).backward()
    for own, other in zip(model.parameters(), eager.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None and torch.equal(own.grad, other.grad)
