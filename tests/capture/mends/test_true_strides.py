"""Joint graphs are traced with the strides that kernels give: node by node, and in models that had none that ran."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import graphopt
from graphopt.capture.mends.true_strides import true_strides
from tests.support.joint import joint_graph

F = nn.functional
C, SIDE = 8, 6

#: Strides of [4, C, SIDE, SIDE] as users come to them.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "last two swapped": lambda x: x.mT.contiguous().mT,
    "batch and channels swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channels and rows swapped": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every second": lambda x: torch.cat([x, x], -1)[..., ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}


def target(x: Tensor) -> Tensor:
    return torch.zeros(x.shape)


FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: F.pad(x, (2, 2, 2, 2), mode="reflect"),
    lambda x: F.pad(x, (2, 2, 2, 2), mode="replicate"),
    lambda x: F.pad(x[:, :, None], (1, 1, 1, 1, 1, 1), mode="replicate"),
    lambda x: F.channel_shuffle(x, 2),
    lambda x: F.hardswish(x) * 1.5,
    lambda x: F.elu(x) * 1.5,
    lambda x: F.celu(x) * 1.5,
    lambda x: F.selu(x) * 1.5,
    lambda x: F.logsigmoid(x) * 1.5,
    lambda x: F.softplus(x) * 1.5,
    lambda x: F.hardsigmoid(x) * 1.5,
    lambda x: F.hardtanh(x) * 1.5,
    lambda x: F.leaky_relu(x) * 1.5,
    lambda x: F.softshrink(x) * 1.5,
    lambda x: F.mish(x) * 1.5,
    lambda x: F.threshold(x, 0.1, 0.0) * 1.5,
    lambda x: F.gelu(x, approximate="tanh") * 1.5,
    lambda x: F.mse_loss(x, target(x), reduction="none"),
    lambda x: F.smooth_l1_loss(x, target(x), reduction="none"),
    lambda x: F.huber_loss(x, target(x), reduction="none"),
    lambda x: F.binary_cross_entropy(x.sigmoid(), target(x), reduction="none"),
    lambda x: F.soft_margin_loss(x, target(x) + 1, reduction="none"),
    lambda x: torch.native_dropout(x, 0.3, True)[0].sin(),
    lambda x: F.layer_norm(x.transpose(1, 2), x.shape[-1:]) * 1.5,
    lambda x: F.layer_norm(x, x.shape[-1:]).transpose(-1, -2).sigmoid(),
    lambda x: F.log_softmax(x, -1).transpose(-1, -2).sigmoid(),
    lambda x: torch.div(x, torch.full((), 0.3), rounding_mode="trunc") + x,
    lambda x: torch.copysign(x, torch.full((), -1.0)),
    lambda x: 2.0**x,
    lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
)


class Everything(nn.Module):
    """Each function for itself, on one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1d, self.norm2d, self.norm3d = nn.BatchNorm1d(C), nn.BatchNorm2d(C), nn.BatchNorm3d(C)
        self.norm2d_of_no_statistics = nn.BatchNorm2d(C, track_running_stats=False)
        self.frozen_norm2d = nn.BatchNorm2d(C).eval()

    def forward(self, x: Tensor) -> Tensor:
        made = [function(x) for function in FUNCTIONS]
        made += [norm(x) for norm in (self.norm2d, self.norm2d_of_no_statistics, self.frozen_norm2d)]
        made += [self.norm1d(x[:, :, 0]), self.norm1d(x[:, :, 0, 0]), self.norm3d(x[:, :, None])]
        return torch.stack([each.square().mean() for each in made]).sum()


class Compared(fx.Interpreter):
    """Runs a joint graph, and notes each op whose result has other strides than it was traced with."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: list[str] = []

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        pairs = zip(_tensors(made), _tensors(n.meta.get("val")), strict=False)
        if n.op == "call_function" and any(_strides(a) != _strides(b) for a, b in pairs):
            self.found.append(str(n.target))
        return made


def _tensors(value: object) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _strides(tensor: Tensor) -> list[int]:
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def untrue(layout: str) -> list[str]:
    """Ops whose strides are other ones than traced."""
    model = Everything()
    x = LAYOUTS[layout](torch.randn(4, C, SIDE, SIDE)).detach().requires_grad_()
    joint, _ = joint_graph(model, x)
    known = [*(p.detach() for p in model.parameters()), *model.buffers()]
    inputs = []
    for node in joint.primals:
        value = node.meta["val"]
        same = [t for t in known if t.shape == value.shape and t.dtype == value.dtype]
        inputs.append(x.detach() if value.shape == x.shape else same[0].clone())
    compared = Compared(joint.module)
    compared.run(*inputs, torch.ones(()), enable_io_processing=False)
    return compared.found


@pytest.mark.fast(2)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_op_has_the_strides_that_it_was_traced_with(layout: str) -> None:
    with true_strides():
        assert untrue(layout) == []


def test_torch_itself_traces_others() -> None:
    """Where this fails torch has mended it, and true_strides may go."""
    assert {op for layout in LAYOUTS for op in untrue(layout)}


class Channels(nn.Module):
    """A norm over channels of [batch, time, channels], as in PatchTST and networks on point clouds."""

    def __init__(self, *after: nn.Module) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.after = nn.Sequential(*after)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.norm(x.transpose(1, 2)).transpose(1, 2)).square().mean()


class Whitened(Channels):
    """The other way round: channels first outside."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.hardswish(self.norm(x.transpose(1, 2)))
        return self.after(F.log_softmax(F.elu(h), 1).transpose(1, 2)).reshape(-1, 2).square().mean()


class Viewed(Channels):
    """The user's own code looks at strides."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x.transpose(1, 2))
        assert h.is_contiguous()
        return self.after(h.view(x.shape[0], -1, 64)).square().mean()


@pytest.mark.parametrize(
    "model",
    [
        Channels(nn.Linear(64, 64)),
        Channels(nn.Flatten()),
        Channels(nn.Linear(64, 64), nn.LayerNorm(64)),
        Whitened(nn.Linear(64, 64)),
        Viewed(nn.Linear(64, 64)),
    ],
    ids=["linear", "flatten", "linear, norm", "more ops", "view"],
)
def test_models_that_did_not_run_have_eagers_bits(model: nn.Module) -> None:
    torch._dynamo.reset()
    eager = copy.deepcopy(model)
    x = torch.randn(4, 41, 64)
    expected = eager(x)
    expected.backward()
    graphopt.optimize(model, "1GiB", example_inputs=(x,))
    loss = model(x)
    loss.backward()
    assert torch.equal(loss, expected)
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None and torch.equal(mine.grad, theirs.grad)
    assert all(map(torch.equal, model.buffers(), eager.buffers()))


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_new_shape_is_traced_with_true_strides_too(dynamic: bool | None) -> None:
    torch._dynamo.reset()
    eager = Channels(nn.Linear(64, 64))
    model = graphopt.optimize(copy.deepcopy(eager), "1GiB", dynamic=dynamic)
    for batch, length in ((4, 41), (4, 23), (3, 41)):
        x = torch.randn(batch, length, 64)
        model(x).backward()
        eager(x).backward()
        for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
            assert mine.grad is not None and theirs.grad is not None and torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize("strides", [(24 * 16, 24, 1), (24 * 16, 1, 16)], ids=["rows", "columns"])
def test_a_dropout_whose_result_is_returned_runs_backward(strides: tuple[int, ...]) -> None:
    """Its gradient comes from outside of the model, in strides that are not those of rows."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(24, 24) / 5)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout((self.weight @ x.transpose(1, 2)).transpose(1, 2), 0.1)

    torch._dynamo.reset()
    eager = Mixed()
    model = graphopt.optimize(copy.deepcopy(eager), "1GiB")
    x, gradient = torch.randn(8, 16, 24), torch.randn(8 * 16 * 24).as_strided((8, 16, 24), strides)
    for each in (model, eager):
        torch.manual_seed(0)
        each(x).backward(gradient)
    assert eager.weight.grad is not None and model.weight.grad is not None
    assert torch.equal(model.weight.grad, eager.weight.grad)


def test_a_training_step_has_eagers_bits() -> None:
    torch._dynamo.reset()
    model = Channels(nn.Linear(64, 64))
    eager = copy.deepcopy(model)
    x = torch.randn(4, 41, 64)
    step = graphopt.train_step(model, None, torch.optim.SGD(model.parameters(), lr=0.1), "1GiB")
    step(x)
    eager(x).backward()
    torch.optim.SGD(eager.parameters(), lr=0.1).step()
    assert all(map(torch.equal, model.parameters(), eager.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_batch_norm_of_half_inputs_saves_is_float32(
    dtype: torch.dtype, recwarn: pytest.WarningsRecorder
) -> None:
    """Its backward cannot be measured otherwise: the kernel refuses what the rule for fake tensors says."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU(), nn.Flatten(), nn.Linear(C * 36, 4))
    eager, x = copy.deepcopy(model), torch.randn(4, 3, 8, 8)
    graphopt.optimize(model, "64MiB")
    for each in (model, eager):
        for _ in range(2):
            each.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                y = each(x).float().square().mean()
            y.backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), eager.parameters(), strict=True))
    assert not [each for each in recwarn if "could not be measured" in str(each.message)]
