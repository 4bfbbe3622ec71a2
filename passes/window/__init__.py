"""The passes over the graph of one optimizer step, as a list in the order in which they run.

A new pass is a file with a function that takes the window's GraphModule and says whether it changed it,
and a line here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import fx

from graphopt.passes.run_passes import NamedPass
from graphopt.passes.window.clip import Clip, clip
from graphopt.passes.window.contract import gradients_are_unscaled, gradients_are_used, updates_are_unconditional
from graphopt.passes.window.heed_overflow import heed_overflow
from graphopt.passes.window.loss_scale import LossScale, loss_scale
from graphopt.passes.window.norms_of_ranks import norms_of_ranks
from graphopt.passes.window.share_rows import RowsInWindow, share_rows
from graphopt.passes.window.update import GroupUpdate, update

Passes = tuple[NamedPass[fx.GraphModule], ...]


def window_passes(
    groups: Sequence[GroupUpdate], clip_by: Clip | None, scale_by: LossScale | None, rows: RowsInWindow | None = None
) -> Passes:
    """From a window that returns its gradients to one that updates the parameters with them.

    `rows` says what each rank has, or updates, where that is shared out over ranks; None: it is not.
    """
    parts = rows is not None and not rows.has_whole_gradients
    used, unscaled, unconditional = gradients_are_used, gradients_are_unscaled, updates_are_unconditional
    passes = (
        NamedPass("update", partial(update, groups=groups), ensures=(used,)),
        NamedPass("clip", partial(clip, how=clip_by), requires=(used, unscaled)) if clip_by else None,
        NamedPass("loss_scale", partial(loss_scale, how=scale_by), requires=(used, unconditional))
        if scale_by
        else None,
        NamedPass("heed_overflow", heed_overflow, requires=(used,)),
        NamedPass("norms_of_ranks", partial(norms_of_ranks, how=rows)) if rows and parts else None,
        NamedPass("share_rows", partial(share_rows, how=rows), requires=(used,)) if rows else None,
    )
    return tuple(each for each in passes if each is not None)
