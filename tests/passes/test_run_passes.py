"""The runner: order, what it says of failures, and rules that are looked at after each pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import fx

from graphopt.base.errors import CaptureError, PassError
from graphopt.passes.run_passes import NamedPass, run_passes
from tests.support.small_window import small_window


def does(changes: bool) -> Callable[[fx.GraphModule], bool]:
    return lambda _: changes


def raises(error: Exception) -> Callable[[fx.GraphModule], bool]:
    def run(_: fx.GraphModule) -> bool:
        raise error

    return run


def is_even(window: fx.GraphModule) -> bool:
    return len(window.graph.nodes) % 2 == 0


def add_node(window: fx.GraphModule) -> bool:
    window.graph.call_function(print)
    return True


@pytest.mark.parametrize("changes", [(), (False,), (False, True), (True, False)])
def test_a_list_changes_what_its_passes_change(changes: tuple[bool, ...]) -> None:
    assert run_passes(small_window(), [NamedPass(str(i), does(c)) for i, c in enumerate(changes)]) is any(changes)


def test_a_fault_is_named_with_what_ran_before_it() -> None:
    fault = KeyError("weight")
    passes = [NamedPass("first", does(True)), NamedPass("second", does(False)), NamedPass("third", raises(fault))]
    with pytest.raises(PassError) as found:
        run_passes(small_window(), passes)
    message = "pass 'third', after first (changed the graph), second, failed: KeyError: 'weight'"
    assert str(found.value) == message and found.value.__cause__ is fault


def test_an_error_for_the_user_stays_as_it_is_and_has_a_note() -> None:
    error = CaptureError("the model is too odd")
    with pytest.raises(CaptureError) as found:
        run_passes(small_window(), [NamedPass("first", does(False)), NamedPass("second", raises(error))])
    assert found.value is error and str(error) == "the model is too odd"
    assert error.__notes__ == ["raised by pass 'second', after first,"]


def test_what_a_pass_requires_is_looked_at_before_it_runs() -> None:
    odd = small_window()
    assert not is_even(odd)
    never = NamedPass("never", raises(AssertionError("it ran")), requires=(is_even,))
    with pytest.raises(PassError, match=r"'never', after no other, failed: .*: it requires that is even"):
        run_passes(odd, [never])
    assert run_passes(odd, [NamedPass("makes it so", add_node), NamedPass("then", does(False), requires=(is_even,))])


def test_what_a_pass_ensures_is_looked_at_after_it_ran() -> None:
    assert run_passes(small_window(), [NamedPass("does", add_node, ensures=(is_even,))])
    with pytest.raises(PassError, match=r"'does not', after no other, failed: .*: it ensures that is even"):
        run_passes(small_window(), [NamedPass("does not", does(False), ensures=(is_even,))])


def test_rules_see_the_graph_before_and_after_each_pass() -> None:
    seen: list[tuple[int, int, bool]] = []

    def rule(window: fx.GraphModule) -> Callable[[bool], str]:
        before = len(window.graph.nodes)

        def broken(changed: bool) -> str:
            seen.append((before, len(window.graph.nodes), changed))
            return "seventeen nodes" if len(window.graph.nodes) == before + 2 else ""

        return broken

    window = small_window()
    count = len(window.graph.nodes)
    assert run_passes(window, [NamedPass("one", add_node), NamedPass("none", does(False))], [rule])
    assert seen == [(count, count + 1, True), (count + 1, count + 1, False)]
    both = NamedPass("both", lambda graph: add_node(graph) and add_node(graph))
    with pytest.raises(PassError, match=r"'both', after one .* failed: AssertionError: seventeen nodes"):
        run_passes(window, [NamedPass("one", add_node), both], [rule])
