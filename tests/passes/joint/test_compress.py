"""The compress pass: what becomes of gradients that other ranks wait for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graphopt.compression.methods import DGC, Compression, EightBit, PowerSGD, TopK
from graphopt.device.ranks import Ranks
from graphopt.graph.joint import JointGraph
from graphopt.graph.nodes import is_collective, is_wait
from graphopt.graph.roles import DESCRIPTOR, RUN_ONCE
from graphopt.passes.joint.accumulate import accumulate
from graphopt.passes.joint.buckets import COMPRESSED_BYTES, WHOLE_BYTES, parcels
from graphopt.passes.joint.compress import compress, sent_bytes
from tests.support.joint import joint_graph, text_of

THREE = Ranks(None, 0, 3, "group", "gloo")  # type: ignore[arg-type]


class Two(nn.Module):
    """Two layers: a weight each that is worth compressing."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))).sum()


def summed(width: int = 40) -> tuple[JointGraph, dict[int, None]]:
    """The joint graph with its accumulators, and the flat inputs that have one."""
    joint, _ = joint_graph(Two(width), torch.randn(2, width))
    trained = list(joint.gradients)
    accumulate(joint, trained)
    return joint, {joint.primals[i].meta[DESCRIPTOR].idx: None for i in trained}


def added(before: str, after: str) -> list[str]:
    """Lines that a pass put in; all others stand as they were, in their order."""
    old, new = before.splitlines(), after.splitlines()
    left = iter(new)
    assert all(line in left for line in old), "the pass changed or moved what was there"
    return [line for line in new if line not in old]


def test_small_gradients_travel_in_one_message() -> None:
    joint, methods = summed()
    before = text_of(joint.graph)
    assert compress(joint.module, THREE, methods)
    both = "accumulator_primals_4, accumulator_primals_5, accumulator_primals_1, accumulator_primals_2"
    assert added(before, text_of(joint.graph)) == [
        f"pack_default = pack.default([{both}], torch.float32)",
        "all_reduce__default = all_reduce_.default(pack_default, sum, group)",
        "wait_tensor_default = wait_tensor.default(all_reduce__default)",
        f"unpack__default = unpack_.default(wait_tensor_default, [{both}])",
    ]
    after = text_of(joint.graph)
    assert not compress(joint.module, THREE, methods) and text_of(joint.graph) == after


def test_large_gradients_travel_where_they_are_and_nobody_waits_before_the_end() -> None:
    joint, methods = summed(512)
    before = text_of(joint.graph)
    assert compress(joint.module, THREE, methods)
    lines = added(before, text_of(joint.graph))
    assert [line for line in lines if "accumulator_primals_4" in line or "accumulator_primals_1" in line] == [
        "all_reduce__default = all_reduce_.default(accumulator_primals_4, sum, group)",
        "all_reduce__default_1 = all_reduce_.default(accumulator_primals_1, sum, group)",
    ]
    text = text_of(joint.graph)
    first = text.index("all_reduce_.default(accumulator_primals_4")
    assert first < text.index("tanh_backward.default") < text.index("wait_tensor.default")


def test_eight_bits_go_in_two_phases_and_state_waits_for_all() -> None:
    joint, methods = summed()
    before = text_of(joint.graph)
    assert compress(joint.module, THREE, dict.fromkeys(methods, EightBit()), scaled=True)
    weights, rests = "accumulator_primals_4, accumulator_primals_1", "accumulator_primals_5, accumulator_primals_2"
    residuals = "residual_accumulator_primals_4, residual_accumulator_primals_1"
    assert added(before, text_of(joint.graph)) == [
        "overflow: input",
        "draw: input",
        "scale: input",
        "inverse_scale: input",
        "residual_accumulator_primals_4: input",
        "residual_accumulator_primals_1: input",
        f"quantize__default = quantize_.default([{weights}], [{residuals}], overflow, inverse_scale, 3)",
        "all_to_all_single_default = "
        "all_to_all_single.default(quantize__default, [1548, 1548, 1548], [1548, 1548, 1548], group)",
        f"pack_default = pack.default([{rests}], torch.float32)",
        "all_reduce__default = all_reduce_.default(pack_default, sum, group)",
        "wait_tensor_default_1 = wait_tensor.default(all_to_all_single_default)",
        f"requantize__default = requantize_.default(wait_tensor_default_1, [{weights}], 0, 3)",
        "all_gather_into_tensor_default = all_gather_into_tensor.default(requantize__default, 3, group)",
        "wait_tensor_default_2 = wait_tensor.default(all_reduce__default)",
        "gradient_norm_default = gradient_norm.default([wait_tensor_default_2], inf)",
        "getitem = getitem(gradient_norm_default, 1)",
        "clamp_min__tensor = clamp_min_.Tensor(overflow, getitem)",
        "all_reduce__default_1 = all_reduce_.default(overflow, max, group)",
        "wait_tensor_default = wait_tensor.default(all_reduce__default_1)",
        f"commit__default = commit_.default([{residuals}], [{weights}], overflow)",
        "wait_tensor_default_3 = wait_tensor.default(all_gather_into_tensor_default)",
        f"dequantize__default = dequantize_.default(wait_tensor_default_3, [{weights}], 1, scale)",
        f"unpack__default = unpack_.default(wait_tensor_default_2, [{rests}])",
    ]


@pytest.mark.parametrize("method", [None, EightBit(), TopK(0.1), DGC(0.1, max_norm=1.0), PowerSGD()], ids=str)
def test_nothing_that_is_sent_may_be_sent_again(method: Compression | None) -> None:
    joint, methods = summed()
    known = set(joint.graph.nodes)
    compress(joint.module, THREE, dict.fromkeys(methods, method))
    made = [node for node in joint.graph.nodes if node not in known and node.op == "call_function"]
    assert all(node.meta[RUN_ONCE] for node in made)
    sent = [node for node in made if is_collective(node) and not is_wait(node)]
    # everything is waited for, once, and read only after that
    assert all([user for user in node.users if not is_wait(user)] == [] and len(node.users) == 1 for node in sent)


def test_a_norm_to_clip_by_wants_all_gradients_first() -> None:
    joint, methods = summed()
    compress(joint.module, THREE, dict.fromkeys(methods, DGC(0.1, max_norm=1.0)))
    text = text_of(joint.graph)
    assert text.rindex("accumulate_.default") < text.index("_foreach_mul_.Tensor") < text.index("sparsify_momentum_")


def test_where_there_is_nothing_to_send_nothing_changes() -> None:
    joint, _ = joint_graph(Two(), torch.randn(2, 40))
    text = text_of(joint.graph)
    assert not compress(joint.module, THREE, {}) and text_of(joint.graph) == text


def test_bytes_are_those_of_the_messages() -> None:
    joint, methods = summed()
    compress(joint.module, THREE, methods)
    assert sent_bytes(joint.graph, 3) == 2 * 2 * 4 * (2 * 40 * 40 + 2 * 40) // 3


def test_parcels_hold_like_with_like_in_the_order_of_appearance() -> None:
    layers = [(1024, 1024), (1024,)] * 10
    shapes, dtypes = [*layers, (7,)], [torch.float32] * 20 + [torch.float64]
    made = parcels(shapes, dtypes, [TopK(0.01)] * 21)
    assert sorted(place for parcel in made for place in parcel.places) == list(range(21))
    assert [parcel.places[-1] for parcel in made] == sorted(parcel.places[-1] for parcel in made)
    for parcel in made:
        assert list(parcel.places) == sorted(parcel.places)
        elements = sum(torch.Size(shapes[place]).numel() for place in parcel.places[:-1])
        assert 4 * elements < (COMPRESSED_BYTES if parcel.method else WHOLE_BYTES)
    assert {parcel.method for parcel in made if 20 in parcel.places} == {None}, "float64 stays float64"
