"""What does not fit is refused with the bytes that all micro-batches of a step fit in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest

from graphopt.base.errors import BudgetError
from graphopt.step.micro_batches.plan_micros import plan_micros


@dataclass(frozen=True)
class Needing:
    """A micro-batch that fits so many bytes and no fewer, or any where that is 0."""

    least_bytes: int

    @property
    def planned(self) -> object:
        if self.least_bytes:
            raise BudgetError(f"needs {self.least_bytes}", self.least_bytes)
        return object()


@dataclass
class Watch:
    """A watch that has nothing to try without."""

    may_try: bool = False


@pytest.mark.parametrize("least", [(5, 9), (9, 5), (0, 9), (9, 0, 5)])
def test_a_refusal_names_what_is_enough_for_all_micro_batches(least: tuple[int, ...]) -> None:
    given: list[Any] = [Needing(each) for each in least]
    with pytest.raises(BudgetError) as caught:
        plan_micros(given, cast(Any, None), cast(Any, Watch()), lambda: None)
    assert caught.value.minimum_bytes == 9


def test_where_others_may_stand_for_them_nothing_is_raised() -> None:
    given: list[Any] = [Needing(9)]
    assert not plan_micros(given, cast(Any, None), cast(Any, Watch()), lambda: None, lambda: True)
