"""oneDNN's LSTM layer as an op with its workspace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphopt.kernels.recurrent.lstm_layer import lstm_layer, lstm_layer_backward, workspace_bytes

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
STEPS, BATCH, FEATURES, HIDDEN = 6, 3, 5, 7


def arguments(bias: bool, dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    torch.manual_seed(0)
    gates = 4 * HIDDEN
    shapes = [(STEPS, BATCH, FEATURES), (gates, FEATURES), (gates, HIDDEN), (gates,), (gates,), *[(BATCH, HIDDEN)] * 2]
    tensors = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    return [None if not bias and i in (3, 4) else tensor for i, tensor in enumerate(tensors)]


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_has_eagers_bits(bias: bool, used: tuple[int, ...]) -> None:
    tensors = arguments(bias)
    x, w_ih, w_hh, b_ih, b_hh, h, c = tensors
    leaves = [tensor for tensor in tensors if tensor is not None]
    weights = [w for w in (w_ih, w_hh, b_ih, b_hh) if w is not None]
    assert x is not None and h is not None and c is not None
    output, hy, cy = torch.lstm(x, [h[None], c[None]], weights, bias, 1, 0.0, True, False, False)
    expected = output, hy[0], cy[0]
    found = lstm_layer(*tensors, False, True)
    assert all(map(torch.equal, found[:3], expected))
    ours, theirs = (
        torch.autograd.grad(sum(outputs[i].square().sum() for i in used), leaves) for outputs in (found, expected)
    )
    assert all(map(torch.equal, ours, theirs))


def test_its_workspace_is_there_without_grad_mode() -> None:
    """Else the backward would read what is not there: the crash of `torch._dynamo.config.allow_rnn` alone."""
    with torch.no_grad():
        workspace = lstm_layer(*arguments(True), True, True)[3]
        plain = torch.ops.aten.mkldnn_rnn_layer.default
        options = (False, [], 2, HIDDEN, 1, True, False, False, True)
        assert plain(*arguments(True), *options)[3] is None, "ATen keeps a workspace now: the op may go"
    assert workspace.numel() == workspace_bytes(STEPS, BATCH, FEATURES, HIDDEN, True, torch.float32) > 0


def test_a_second_backward_gives_the_same() -> None:
    """oneDNN uses a part of the workspace for the gradients of states, but writes nothing that it reads."""
    tensors = arguments(True)
    with torch.no_grad():
        outputs = lstm_layer(*tensors, False, True)
        before = [tensor.clone() for tensor in outputs]
        first = lstm_layer_backward(*before[:3], *tensors, *outputs, False)
        assert all(map(torch.equal, outputs[:3], before))
        assert all(map(torch.equal, first, lstm_layer_backward(*before[:3], *tensors, *outputs, False)))


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_traced_is_what_is_run(bias: bool) -> None:
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(lstm_layer, (*arguments(bias), False, True), test_utils=tests)
