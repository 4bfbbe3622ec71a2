"""Regions in pieces: the losses and gradients of the whole, for every kind of loss that language models have."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from graphopt.graph.joint import JointGraph, copy_joint
from graphopt.passes.joint import CLEANING, in_pieces
from graphopt.passes.joint.chunks.chunk import chunk
from graphopt.passes.joint.chunks.find import find_regions
from graphopt.passes.joint.chunks.hoist_cuts import hoist_cuts
from graphopt.passes.joint.contract import RULES
from graphopt.passes.run_passes import run_passes
from graphopt.problem.pieces import Pieces
from tests.support.joint import edits, joint_graph, text_of
from tests.support.language_losses import LOSSES, Head, some_targets

CLASSES, WIDTH = 97, 8
TANGENT = 1.7
#: Units in the last place of a tensor's largest element, from float64's: what docs/numerics.md says.
ULPS = 16


@cache
def clean_graph(loss: str, rows: tuple[int, int], bias: bool, tied: bool) -> tuple[JointGraph, Head]:
    torch.manual_seed(0)
    model = Head(LOSSES[loss], rows, WIDTH, CLASSES, bias=bias, tied=tied)
    joint, _ = joint_graph(model, some_targets(rows, CLASSES))
    run_passes(joint, CLEANING)
    return joint, model


def given_to(joint: JointGraph, model: Head, targets: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of the graph's primals, in order: all differ in shape or dtype."""
    there = [*model.parameters(), targets]
    likes = [node.meta["val"] for node in joint.primals]
    return [next(t for t in there if t.shape == like.shape and t.dtype == like.dtype) for like in likes]


def results(joint: JointGraph, model: Head, targets: torch.Tensor) -> list[torch.Tensor]:
    """Loss and gradients, from the graph's own nodes."""
    inputs = iter(given_to(joint, model, targets))
    tangent = torch.tensor(TANGENT)
    placeholders = joint.graph.find_nodes(op="placeholder")
    real = [next(inputs).detach() if node in joint.primals else tangent for node in placeholders]
    returned = fx.Interpreter(joint.module).run(*real, enable_io_processing=False)
    return [each for each in returned if each is not None]


def exact_results(joint: JointGraph, model: Head, targets: torch.Tensor) -> list[torch.Tensor]:
    """Loss and gradients, from eager in float64."""
    exact = copy.deepcopy(model).double()
    loss = exact(targets)
    (loss * TANGENT).backward()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [names[id(each)] for each in given_to(joint, model, targets) if id(each) in names]
    gradients = dict(exact.named_parameters())
    return [loss.detach(), *(gradients[name].grad for name in found)]  # type: ignore[list-item]


def ulps_from(exact: torch.Tensor, found: torch.Tensor) -> float:
    if exact.isnan().all() and found.isnan().all():
        return 0.0
    unit = torch.finfo(found.dtype).eps * exact.abs().max().clamp(min=torch.finfo(found.dtype).tiny)
    return float((found.double() - exact).abs().max() / unit)


def check(loss: str, rows: tuple[int, int], ignored: str, bias: bool, tied: bool, pieces: Pieces, known: bool) -> None:
    """In pieces the graph keeps all rules, holds no large value whole, and is as near to float64 as eager."""
    joint, model = clean_graph(loss, rows, bias, tied)
    targets = some_targets(rows, CLASSES, ignored)
    divided = copy_joint(joint)
    run_passes(divided, in_pieces(pieces, tangent_is_known=known), RULES)
    exact, whole = exact_results(joint, model, targets), results(joint, model, targets)
    found = results(divided, model, targets)
    for one, other, best in zip(found, whole, exact, strict=True):
        assert ulps_from(best, one) <= max(ULPS, 8 * ulps_from(best, other))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("known", [True, False], ids=["tangent known", "tangent comes later"])
def test_losses_in_pieces(loss: str, known: bool) -> None:
    for ignored, at_once in (("some", True), ("some", False), ("all", True)):
        check(loss, (3, 7), ignored, True, False, Pieces(4, at_once), known)
    joint = copy_joint(clean_graph(loss, (3, 7), True, False)[0])
    hoist_cuts(joint)
    (region,) = find_regions(joint)
    assert region.total == (18 if loss == "shifted by hand" else 21)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["label smoothing", "token weights"]),
    st.sampled_from([(1, 2), (3, 5)]),
    st.booleans(),
    st.builds(Pieces, st.integers(2, 40), st.booleans()),
    st.booleans(),
)
def test_any_shape_in_any_number_of_pieces(
    loss: str, rows: tuple[int, int], tied: bool, pieces: Pieces, known: bool
) -> None:
    check(loss, rows, "some", not tied, tied, pieces, known)


def test_one_class() -> None:
    targets = torch.zeros(2, 4, dtype=torch.int64)
    joint, _ = joint_graph(Head(LOSSES["mean"], (2, 4), 64, 1, bias=False, tied=False), targets)
    run_passes(joint, CLEANING)
    chunk(joint, Pieces(2))  # one column is as small as a loss: whatever is found must be right
    inputs = [node.meta["val"] for node in joint.graph.find_nodes(op="placeholder")]
    real = [torch.ones(t.shape) if t.dtype.is_floating_point else torch.zeros_like(targets) for t in inputs]
    loss, *gradients = fx.Interpreter(joint.module).run(*real, enable_io_processing=False)
    assert loss == 0 and all(each is None or not each.any() for each in gradients)


@pytest.mark.parametrize("at_once", [True, False])
def test_logits_are_never_whole(at_once: bool) -> None:
    joint = copy_joint(clean_graph("soft-capped", (3, 7), True, False)[0])
    assert chunk(joint, Pieces(7, at_once), tangent_is_known=True)
    held = [node.meta["val"] for node in joint.graph.nodes if node.op == "call_function"]
    wide = [t.shape[0] for t in held if isinstance(t, torch.Tensor) and t.dim() == 2 and t.shape[1] == CLASSES]
    assert max(rows for rows in wide if rows != WIDTH) == 3


def test_logits_that_are_returned_are_whole_and_the_rest_is_not() -> None:
    class Returning(Head):
        def forward(self, targets: torch.Tensor) -> torch.Tensor:
            logits = self.hidden @ self.weight.T
            return self.loss(logits, targets), logits  # type: ignore[return-value]

    model = Returning(LOSSES["mean"], (3, 7), 8, CLASSES, bias=False, tied=False)
    joint, _ = joint_graph(model, some_targets((3, 7), CLASSES))
    run_passes(joint, CLEANING)
    (region,) = find_regions(joint)
    names = [str(node.target) for node in region.nodes]
    assert "aten.mm.default" not in names[:1] and "aten._log_softmax.default" in names


def test_a_hidden_value_of_all_rows_is_read_in_a_second_pass() -> None:
    def centred(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return LOSSES["mean"](logits - logits.mean(), targets)

    torch.manual_seed(0)
    model = Head(centred, (3, 7), WIDTH, CLASSES, bias=False, tied=False)
    targets = some_targets((3, 7), CLASSES)
    joint, _ = joint_graph(model, targets)
    run_passes(joint, CLEANING)
    exact = exact_results(joint, model, targets)
    run_passes(joint, in_pieces(Pieces(3), tangent_is_known=False), RULES)
    found = results(joint, model, targets)
    assert all(ulps_from(best, one) <= 2 * ULPS for best, one in zip(exact, found, strict=True))


def test_what_mixes_rows_stays_whole() -> None:
    def mixed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return LOSSES["mean"](logits.cumsum(0).cumsum(1), targets)

    joint, _ = joint_graph(Head(mixed, (3, 7), 8, CLASSES, bias=False, tied=False), some_targets((3, 7), CLASSES))
    run_passes(joint, CLEANING)
    assert all("cumsum" not in str(node.target) for region in find_regions(joint) for node in region.nodes)


GOLDEN = """\
known_start: input
t_5 = t.default(t)
mm_slice = slice.Tensor(view, 0, 0, 2)
mm_3 = mm.default(mm_slice, t)
_log_softmax_1 = _log_softmax.default(mm_3, 1, False)
loss_slice = slice.Tensor(view_2, 0, 0, 2)
loss_1 = loss.default(_log_softmax_1, loss_slice, None, 0, -100)
loss_part = getitem(loss_1, 0)
loss_zeros_like = zeros_like.default(view_2, dtype=torch.float32)
loss_eq = eq.Scalar(view_2, -100)
loss_zeros_like_1 = zeros_like.default(view_2)
loss_masked_fill = masked_fill.Scalar(loss_zeros_like_1, loss_eq, -100)
loss_unsqueeze = unsqueeze.default(loss_zeros_like, 1)
loss_2 = loss.default(loss_unsqueeze, loss_masked_fill, None, 1, -100)
loss_part_1 = getitem(loss_2, 1)
loss_backward_1 = loss_backward.default(known_start, _log_softmax_1, loss_slice, None, 1, -100, loss_part_1)
_log_softmax_backward_data_1 = _log_softmax_backward_data.default(loss_backward_1, _log_softmax_1, 1, torch.float32)
t_6 = t.default(_log_softmax_backward_data_1)
mm_4 = mm.default(t_6, mm_slice)
mm_5 = mm.default(_log_softmax_backward_data_1, t_5)
mm_2_new_empty = new_empty.default(mm_5, [4, 8])
mm_2_write_rows_ = write_rows_.default(mm_2_new_empty, mm_5, 0, 0)
mm_slice_1 = slice.Tensor(view, 0, 2, 4)
mm_6 = mm.default(mm_slice_1, t)
_log_softmax_2 = _log_softmax.default(mm_6, 1, False)
loss_slice_1 = slice.Tensor(view_2, 0, 2, 4)
loss_3 = loss.default(_log_softmax_2, loss_slice_1, None, 0, -100)
loss_part_2 = getitem(loss_3, 0)
loss_backward_2 = loss_backward.default(known_start, _log_softmax_2, loss_slice_1, None, 1, -100, loss_part_1)
_log_softmax_backward_data_2 = _log_softmax_backward_data.default(loss_backward_2, _log_softmax_2, 1, torch.float32)
t_7 = t.default(_log_softmax_backward_data_2)
mm_1_addmm_ = addmm_.default(mm_4, t_7, mm_slice_1)
mm_7 = mm.default(_log_softmax_backward_data_2, t_5)
mm_2_write_rows__1 = write_rows_.default(mm_2_write_rows_, mm_7, 0, 2)
loss_cat = cat.default([loss_part, loss_part_2])
loss_neg = neg.default(loss_cat)
loss_eq_1 = eq.Scalar(view_2, -100)
loss_zeros_like_2 = zeros_like.default(view_2)
loss_masked_fill_1 = masked_fill.Scalar(loss_zeros_like_2, loss_eq_1, -100)
loss_unsqueeze_1 = unsqueeze.default(loss_neg, 1)
loss_4 = loss.default(loss_unsqueeze_1, loss_masked_fill_1, None, 1, -100)
loss_part_3 = getitem(loss_4, 0)
t_2 = t.default(mm_1_addmm_)
view_5 = view.default(mm_2_write_rows__1, [2, 2, 8])
return [loss_part_3, tanh_backward, t_4, None]
"""


def test_golden() -> None:
    """What comes in the place of a head and its loss, in two pieces with gradients made at once."""
    joint = copy_joint(clean_graph("mean", (2, 2), False, False)[0])
    before = text_of(joint.graph)
    chunk(joint, Pieces(2, at_once=True), tangent_is_known=True)
    came = [line[2:] for line in edits(before, text_of(joint.graph)) if line[0] == "+"]
    assert "\n".join(came).replace("nll_loss_forward", "loss").replace("nll_loss", "loss") == GOLDEN.rstrip()
