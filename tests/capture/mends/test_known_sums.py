"""Arithmetic on symbols that is looked up gives what computing it gives."""

from __future__ import annotations

import operator
import random
from typing import Any

import pytest
import torch
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from graphopt.capture.mends.known_sums import _OF_TWO, known_sums

OPERATIONS = (operator.add, operator.sub, operator.mul, operator.eq, operator.lt, operator.ge, torch.sym_max)


def symbols(env: ShapeEnv, *sizes: int) -> list[Any]:
    made = []
    for number, size in enumerate(sizes):
        source = ConstantSource(f"size{number}")
        symbol = env.create_symbol(size, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
        made.append(env.create_symintnode(symbol, hint=size, source=source))
    return made


def computed(seed: int) -> list[tuple[str, Any, type]]:
    """A few hundred operations on two symbols and on what came of them."""
    draw, env = random.Random(seed), ShapeEnv()
    known = symbols(env, 6, 10)
    found = []
    for _ in range(100):
        one, other = draw.choice(known), draw.choice([*known, 1, 2, 7])
        made = draw.choice(OPERATIONS)(one, other)
        if isinstance(made, torch.SymInt) and len(str(made.node.expr)) < 60:
            known.append(made)
        node = getattr(made, "node", None)
        found.append((str(node.expr), node.hint, node.pytype) if node is not None else ("", made, type(made)))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_what_is_looked_up_is_what_is_computed(seed: int) -> None:
    expected = computed(seed)
    with known_sums():
        assert computed(seed) == expected


def test_a_symbol_that_comes_to_mean_another_is_heeded() -> None:
    with known_sums():
        env = ShapeEnv()
        one, other = symbols(env, 8, 8)
        before = (one + other).node.expr
        assert (one * 2).node.maybe_as_int() is None and before.free_symbols == {one.node.expr, other.node.expr}
        assert bool(one == other)  # a guard: from now on they are one symbol
        assert len((one + other).node.expr.free_symbols) == 1
        assert bool(one == 8)
        assert (one * 2).node.maybe_as_int() == 16


def test_each_result_is_a_node_of_its_own() -> None:
    with known_sums():
        one, other = symbols(ShapeEnv(), 6, 10)
        assert (one + other).node is not (one + other).node


def test_torch_is_as_it_was_behind_it() -> None:
    before = {name: getattr(SymNode, name) for name in (*_OF_TWO, "maybe_as_int", "wrap_int")}
    with known_sums():
        inside = SymNode.add
        assert inside is not before["add"]
        with known_sums():
            assert SymNode.add is inside
    assert {name: getattr(SymNode, name) for name in before} == before


def test_what_is_relied_on_of_torch_is_there() -> None:
    """Where this fails, torch's nodes have changed: look at `known_sums` anew."""
    (node,) = (size.node for size in symbols(ShapeEnv(), 6))
    assert {"_expr", "_hint", "constant", "pytype", "_optimized_summation", "shape_env"} <= set(vars(node))
    assert isinstance(node.shape_env._replacements_version_counter, int)
    assert torch.compiler._is_compiling_flag is False
