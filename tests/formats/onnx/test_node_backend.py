"""onnx's own node tests, of every operator that the importer names as supported."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from functools import cache
from typing import Any

import pytest
import torch
from onnx.backend.test.case.node import collect_testcases

from graphopt.formats.onnx.ops import OPERATORS
from tests.support.onnx_backend import OnnxBackend, as_tensor

_UNSIGNED = r"test_(add|sub|div|mod|max|min|greater|greater_equal|less|less_equal)_uint(16|32|64)$|test_bitwise_not_3d$"
#: Tests that are left out, by what their names match, and why. All that an entry matches must fail.
EXCLUDED = {
    r"FLOAT8|FLOAT4|U?INT4|U?INT2|E8M0|float8|float4|e4m3|e5m2|e8m0|u?int4|u?int2$": "torch computes in no such dtype",
    _UNSIGNED: "torch has no arithmetic on uint16, uint32 and uint64",
    r"test_attention.*(softcap|qk_matmul|window(?!_default)|nonpad|padded_kv)": "parts that torch's attention has not",
    r"test_bernoulli|test_training_dropout(?!_zero)": "other random numbers",
    r"test_dropout_default_mask": "the mask of a dropout as an output",
    r"test_gru_bidirectional|test_lstm_with_peepholes": "forms that torch's layers have not",
    r"string|STRING": "strings",
    r"test_identity_(sequence|opt)|test_if_(seq|opt)|test_split_to_sequence": "lists or optional values in and out",
}


@cache
def cases() -> dict[str, list[Any]]:
    """Tests of one node each, by operator."""
    found = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collected = collect_testcases(None)
    for case in collected:
        if len(case.model.graph.node) == 1:
            found[case.model.graph.node[0].op_type].append(case)
    return found


def failure(case: Any) -> str:
    """Why a test fails; "" where it passes."""
    try:
        for inputs, wanted in case.data_sets:
            got = OnnxBackend.prepare(case.model).run(inputs)
            for mine, theirs in zip(got, map(as_tensor, wanted), strict=True):
                half = mine.dtype in (torch.float16, torch.bfloat16)
                rounding = {"rtol": 2e-2, "atol": 1e-2} if half else {"rtol": max(case.rtol, 1e-3), "atol": 1e-5}
                torch.testing.assert_close(mine, theirs, equal_nan=True, **rounding)
    except Exception as error:
        return f"{case.name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def reasons(name: str) -> list[str]:
    return [pattern for pattern in EXCLUDED if re.search(pattern, name)]


@pytest.mark.fast(6)
@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_an_operator_computes_what_onnx_says(operator: str) -> None:
    wrong = [failure(case) for case in cases().get(operator, []) if not reasons(case.name)]
    assert not list(filter(None, wrong))


def test_what_is_left_out_does_fail() -> None:
    named = defaultdict(list)
    for operator in OPERATORS:
        for case in cases().get(operator, []):
            for pattern in reasons(case.name):
                named[pattern].append(case)
    assert set(named) == set(EXCLUDED)
    for pattern, mine in named.items():
        assert all(failure(case) for case in mine), pattern


def test_most_operators_have_tests() -> None:
    tested = {operator for operator in OPERATORS if cases().get(operator)}
    assert len(tested) > 140 and sum(len(cases()[operator]) for operator in tested) > 1000
