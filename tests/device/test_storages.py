"""Which tensors a value holds, and how many bytes their storages are."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from graphopt.device.storages import tensors_in, unique_storage_bytes

A, B, C = torch.zeros(2), torch.ones(3), torch.ones(4)
Pair = namedtuple("Pair", ("first", "second"))


class Listed(list[Any]):
    """A list that pytree does not know."""


@dataclass
class Output:
    """What a model may return; `late` is not there before somebody asks for it."""

    logits: Any
    hidden: Any = ()
    name: str = "output"
    late: Any = field(init=False)


HOLDERS = {
    "a tensor": (A, [A]),
    "nothing": (None, []),
    "numbers": ([1, 2.0, "x", None], []),
    "tuples and lists": ((A, [B, (1, C)]), [A, B, C]),
    "a dictionary, in its order": ({"b": B, "a": A}, [B, A]),
    "an ordered one": (OrderedDict(b=B, a=A), [B, A]),
    "a named tuple": (Pair(B, [A]), [B, A]),
    "what is named by torch": (torch.return_types.max((A, B)), [A, B]),
    "a list of its own class": (Listed([A, [B]]), [A, B]),
    "a mapping of its own class": ([UserDict(a=A, b=[B]), C], [A, B, C]),
    "a dataclass": (Output(A, (B, C)), [A, B, C]),
    "dataclasses in each other": ({"x": Output([Output(A)], {"h": B})}, [A, B]),
    "transformers' outputs": (BaseModelOutput(last_hidden_state=A, hidden_states=(B, C)), [A, B, C]),
    "the class of a dataclass": (Output, []),
    "one tensor twice": ([A, A], [A, A]),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_all_tensors_are_found_in_order(name: str) -> None:
    value, expected = HOLDERS[name]
    found = tensors_in(value)
    assert len(found) == len(expected) and all(a is b for a, b in zip(found, expected, strict=True))


def test_each_storage_counts_once() -> None:
    whole = torch.zeros(10)
    assert unique_storage_bytes([whole, whole[2:], whole.view(2, 5), torch.zeros(3)], torch.device("cpu")) == 52
    assert unique_storage_bytes([whole], torch.device("cuda", 0)) == 0
