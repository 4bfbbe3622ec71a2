"""What is written into a part of a buffer is read as it is, where nothing depends on the part's layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from graphopt.passes.joint.read_written_parts import read_written_parts
from tests.support.joint import joint_graph, text_of

Read = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Buffered(nn.Module):
    """Writes a product into the first columns of a buffer, and reads it by `read(part, buffer)`."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.weight, self.read = nn.Parameter(torch.randn(4, 5)), read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = x @ self.weight
        with torch.no_grad():
            buffer = x.new_empty(3, 64)
            part = buffer[:, :5]
            part.copy_(product)
            read = self.read(part, buffer)
        return (product * read.sum()).sum()


def test_no_buffer_is_left() -> None:
    joint, _ = joint_graph(Buffered(lambda part, _: part * 2), torch.randn(3, 4))
    assert "slice_scatter" in text_of(joint.graph) and "empty" in text_of(joint.graph)
    assert read_written_parts(joint)
    assert text_of(joint.graph) == (
        "primals_1: input\n"
        "primals_2: input\n"
        "tangents_1: input\n"
        "mm = mm.default(primals_2, primals_1)\n"
        "mul = mul.Tensor(mm, 2)\n"
        "sum_1 = sum.default(mul)\n"
        "mul_1 = mul.Tensor(mm, sum_1)\n"
        "sum_2 = sum.default(mul_1)\n"
        "expand = expand.default(tangents_1, [3, 5])\n"
        "mul_2 = mul.Tensor(expand, sum_1)\n"
        "t = t.default(primals_2)\n"
        "mm_1 = mm.default(t, mul_2)\n"
        "return [sum_2, mm_1, None]"
    )
    assert not read_written_parts(joint)


GOES: dict[str, Read] = {
    "a product": lambda part, _: part @ part.t(),
    "written again": lambda part, _: part.mul_(2).add_(1) * part,
    "a part of rows": lambda _, buffer: buffer[1:].select(1, 2).copy_(torch.ones(2)) + 1,
}
STAYS: dict[str, Read] = {
    "rounded otherwise": lambda part, _: part.sigmoid(),
    "multiplied and added at once": lambda part, _: torch.add(part, part, alpha=3),
    "summed up": lambda part, _: part.sum(),
    "another part": lambda _, buffer: buffer[:, 1:6] * 2,
    "all of it": lambda _, buffer: buffer * 0,
    "columns": lambda _, buffer: buffer.t()[:5].copy_(torch.ones(5, 3)) @ torch.ones(3, 5),
    "one row": lambda _, buffer: buffer[:1, :5].copy_(torch.ones(1, 5)) @ torch.ones(5, 5),
}


@pytest.mark.parametrize("case", GOES)
def test_a_buffer_that_only_passes_values_on_goes(case: str) -> None:
    joint, _ = joint_graph(Buffered(GOES[case]), torch.randn(3, 4))
    assert read_written_parts(joint)
    assert "scatter" not in text_of(joint.graph) and "empty" not in text_of(joint.graph)


@pytest.mark.parametrize("case", STAYS)
def test_a_buffer_whose_layout_matters_stays(case: str) -> None:
    joint, _ = joint_graph(Buffered(STAYS[case]), torch.randn(3, 4))
    read_written_parts(joint)
    assert "scatter" in text_of(joint.graph)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_is_converted_on_the_way_is_converted(dtype: torch.dtype) -> None:
    def read(part: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        return part.mul(2) + buffer.new_empty(9, 8, dtype=dtype)[:3, :5].copy_(part)

    joint, _ = joint_graph(Buffered(read), torch.randn(3, 4))
    assert read_written_parts(joint)
    assert "_to_copy" in text_of(joint.graph) and "scatter" not in text_of(joint.graph)
