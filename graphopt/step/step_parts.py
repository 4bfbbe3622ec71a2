"""What a training step is made of beside its graphs: what ranks share out, the view of the optimizer, the exchange."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import torch
from torch import nn

from graphopt.compression.choose import Auto
from graphopt.compression.link import Link
from graphopt.compression.methods import Compression
from graphopt.device.ranks import Ranks
from graphopt.step.optimizer.optimizer_view import OptimizerView
from graphopt.step.optimizer.state_elsewhere import StateElsewhere
from graphopt.step.ranks.exchange import Exchange
from graphopt.step.sharding.share_out import Shared, share_out
from graphopt.step.sharding.shared_state import SharedState
from graphopt.step.sharding.state import give_state_as_dtensors
from graphopt.step.tensor_parallel.placement import TensorParallel
from graphopt.step.undo import where_refused


def shared_out(
    undo: ExitStack, shard: object, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks, link: Link
) -> Shared:
    """What this rank keeps as rows from now on, or until `undo` makes it whole. Raises UsageError as `share_out`."""
    sharded = share_out(shard, model, optimizer, ranks, link)
    where_refused(undo, partial(sharded.unshard, optimizer))
    give_state_as_dtensors(sharded, optimizer)
    return sharded


def viewed(
    undo: ExitStack,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sharded: Shared | None,
    elsewhere: StateElsewhere | None,
    *,
    masters: bool,
) -> OptimizerView:
    """The view of an optimizer that updates rows where they are `sharded`, and `masters` until `undo` drops them."""
    rows = sharded.rows if isinstance(sharded, SharedState) else None
    sums_whole = scattering(sharded) is None
    view = OptimizerView(optimizer, model, masters=masters, rows=rows, sums_whole=sums_whole, elsewhere=elsewhere)
    where_refused(undo, view.drop_masters)
    if sharded is not None:
        sharded.has_masters(view.masters)
    return view


def exchange_over(
    ranks: Ranks | None,
    view: OptimizerView,
    compress: Compression | Auto | None,
    sharded: Shared | None,
    parallel: TensorParallel | None,
    *,
    scaled: bool,
) -> Exchange | None:
    """How gradients go to the other ranks; None in a process that trains alone."""
    if ranks is None:
        return None
    return Exchange(ranks, view, compress, scaled=scaled, shared=scattering(sharded), parallel=parallel)


def scattering(sharded: Shared | None) -> Shared | None:
    """What is shared out, where gradients are too; None where they stay whole."""
    return sharded if sharded is not None and sharded.how.scatters else None
