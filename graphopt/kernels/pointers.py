"""What compiled CPU kernels are handed: kinds of elements, and rows of numbers and addresses."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

#: The numbers by which half.h knows dtypes.
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def rows_of(columns: Sequence[Sequence[int]]) -> array[int]:
    """Columns of equal lengths as C structs of int64 that lie one behind the other, one for each place in a column."""
    return array("q", chain.from_iterable(zip(*columns, strict=True)))


def address_and_count(rows: array[int], row_length: int) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
    """Where rows of so many numbers begin, and how many there are; good while `rows` lives."""
    return ctypes.c_void_p(rows.buffer_info()[0]), ctypes.c_int64(len(rows) // row_length)


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Where a contiguous tensor begins; good while its memory does."""
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def number(scalar: Tensor | None) -> float:
    """The value of a scalar tensor; 1.0 for None."""
    return 1.0 if scalar is None else float(scalar)
