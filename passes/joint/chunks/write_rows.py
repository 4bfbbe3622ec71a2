"""Op: a piece of rows is written to its place in a tensor of all rows."""

from __future__ import annotations

import torch

_library = torch.library.Library("graphopt", "FRAGMENT")
_library.define("write_rows_(Tensor(a!) whole, Tensor piece, int dim, int start) -> Tensor(a!)")


def _write_rows(whole: torch.Tensor, piece: torch.Tensor, dim: int, start: int) -> torch.Tensor:
    whole.narrow(dim, start, piece.shape[dim]).copy_(piece)
    return whole


_library.impl("write_rows_", _write_rows, "CompositeExplicitAutograd")

write_rows_ = torch.ops.graphopt.write_rows_.default
