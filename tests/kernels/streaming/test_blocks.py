"""State cut into blocks: every element once, in order, within the slots that were counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from graphopt.kernels.streaming.blocks import VECTOR_ELEMENTS, block_elements, cut, places, slot_bytes


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(1, 5))
def test_blocks_have_every_element_once_and_in_order(elements: list[int], vectors: int) -> None:
    most = vectors * VECTOR_ELEMENTS
    blocks = cut(elements, most)

    assert all(0 < sum(part.stop - part.start for part in block) <= most for block in blocks)
    parts = [part for block in blocks for part in block]
    covered = [(part.parameter, at) for part in parts for at in range(part.start, part.stop)]
    assert covered == [(parameter, at) for parameter, number in enumerate(elements) for at in range(number)]
    assert all(part.start % VECTOR_ELEMENTS == 0 for part in parts)
    assert [part.parameter for part in parts if part.is_last] == list(range(len(elements)))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(1, 5), st.sampled_from([2, 4, 8]))
def test_parts_lie_apart_in_a_slot(elements: list[int], vectors: int, itemsize: int) -> None:
    most = vectors * VECTOR_ELEMENTS
    itemsizes = [itemsize] * len(elements)
    slot = slot_bytes(elements, itemsizes, most)

    for block in cut(elements, most):
        ends = 0
        for part, (start, stop) in zip(block, places(block, itemsizes), strict=True):
            assert start >= ends and start % 64 == 0 and stop - start == (part.stop - part.start) * itemsize
            ends = stop
        assert ends <= slot


def test_blocks_are_a_sixteenth_within_limits() -> None:
    assert block_elements(100) == 2**15
    assert block_elements(2**24) == 2**20
    assert block_elements(2**40) == 2**21
