"""What a plan may do to bits."""

from __future__ import annotations

from typing import Literal, get_args

from graphopt.base.errors import UsageError

#: Eager's bits wherever eager's kernels run; or sums may be added up in another order, piece by piece.
Numerics = Literal["bitwise", "reordered"]


def check_numerics(numerics: object, compiler: object) -> None:
    """Raise UsageError where it is none of `Numerics`, or nothing that the compiler can do."""
    if numerics not in get_args(Numerics):
        raise UsageError(f"numerics: expected 'bitwise' or 'reordered', got {numerics!r}")
    if numerics == "reordered" and compiler != "eager":
        raise UsageError(
            f"numerics='reordered' does not go with compiler={compiler!r}, whose kernels take their own order"
        )
