"""Bytes in closed form, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy

from graphopt.base.units import format_bytes
from graphopt.cost_models.polynomials import Form, Ranges

#: Polynomials that are shown of one form.
_MOST_SHOWN = 4
_POWERS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Formula:
    """What a training step takes as functions of the sizes of its inputs, for sympy; `str()` shows them.

    Bytes are in the budget's own measure. `eager` and `minimum` are peaks, of the captured order and of the schedule
    that takes least at the example's sizes, or at the largest of a table; `chosen` is that of a plan, None where
    nothing is planned for a budget; the others are what each kind takes. `flops` are of the step in which nothing is
    computed twice. `sizes` are those of the example.
    """

    eager: sympy.Expr
    minimum: sympy.Expr
    parameters: sympy.Expr
    gradients: sympy.Expr
    optimizer: sympy.Expr
    inputs: sympy.Expr
    flops: sympy.Expr
    sizes: Mapping[str, int]
    chosen: sympy.Expr | None = None
    shown: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.shown)

    def as_text(self) -> dict[str, str]:
        """Each expression as text that sympy reads; a plan's own only where there is one."""
        names = ("eager", "minimum", "chosen", "parameters", "gradients", "optimizer", "inputs", "flops")
        return {name: str(getattr(self, name)) for name in names if getattr(self, name) is not None}


def formula_lines(
    peaks: Mapping[str, Form], kinds: Mapping[str, Form], flops: Form, ranges: Ranges, least_at: Mapping[str, int]
) -> tuple[str, ...]:
    """The closed forms as lines of text: peaks as far as they matter in these ranges of sizes.

    `least_at` are the sizes at which the minimum's schedule takes least of all.
    """
    where = ", ".join(f"{name} from {low:,} to {high:,}" for name, (low, high) in ranges.items())
    lines = [f"peaks in bytes, {where}; the largest of each:"]
    for title, form in peaks.items():
        lines += _aligned(title, _largest_first(form.within(ranges), ranges))
    least = ", ".join(f"{name} {size:,}" for name, size in least_at.items())
    lines += [f"  (minimum: the schedule that takes least at {least})", "", "bytes of"]
    lines += [line for title, form in kinds.items() for line in _aligned(title, _largest_first(form, ranges))]
    return (*lines, "", *_aligned("operations", _largest_first(flops, ranges, in_bytes=False)))


def polynomial_text(polynomial: sympy.Expr, in_bytes: bool = True) -> str:
    """One polynomial in words of one line, the steepest term first: `144·batch·length² + 67,784·batch·length + 8`."""
    terms = polynomial.as_coefficients_dict() if polynomial != 0 else {sympy.Integer(1): sympy.Integer(0)}
    ordered = sorted(terms.items(), key=lambda item: (-_degree(item[0]), str(item[0])))
    text = " + ".join(_term_text(term, int(coefficient), in_bytes) for term, coefficient in ordered)
    return text.replace("+ -", "- ")


def _largest_first(form: Form, ranges: Ranges, in_bytes: bool = True) -> list[str]:
    """The polynomials of a form, those first that are the largest where sizes are."""
    corner = {sympy.Symbol(name, integer=True, positive=True): high for name, (_, high) in ranges.items()}
    ordered = sorted(form.polynomials, key=lambda polynomial: -float(polynomial.subs(corner)))
    shown = [polynomial_text(polynomial, in_bytes) for polynomial in ordered[:_MOST_SHOWN]]
    rest = len(ordered) - len(shown)
    return [*shown, f"({rest} more, close to these)"] if rest else shown


def _aligned(title: str, texts: Sequence[str]) -> list[str]:
    return [f"  {title if not number else '':<12}{text}" for number, text in enumerate(texts)]


def _term_text(term: sympy.Expr, coefficient: int, in_bytes: bool) -> str:
    if term == 1:
        return f"{coefficient:,}" + (f" ({format_bytes(coefficient)})" if in_bytes and coefficient >= 1 << 20 else "")
    factors = sorted(term.as_powers_dict().items(), key=lambda item: str(item[0]))
    text = "·".join(f"{base}{str(power).translate(_POWERS) if power != 1 else ''}" for base, power in factors)
    return text if coefficient == 1 else f"{coefficient:,}·{text}"


def _degree(term: sympy.Expr) -> int:
    return int(sum(power for base, power in term.as_powers_dict().items() if base != 1))
