"""Another rank that dies, hangs or does not come becomes an error that says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from graphopt.base.errors import RankError
from graphopt.device.ranks import Ranks

#: What stands in gloo's errors, which are plain RuntimeErrors: as a rule the place in its sources.
_GLOO = ("gloo/transport", "gloo/context", "gloo::", "Application timeout caused pair closure")


@contextmanager
def naming_failures(ranks: Ranks | None) -> Iterator[None]:
    """Where a collective of a step fails since another rank died or does not come, raise RankError; all else passes."""
    try:
        yield
    except RuntimeError as error:
        if ranks is None or not _is_from_network(error):
            raise
        raise RankError(
            f"rank {ranks.rank} lost the other {ranks.world - 1} in the middle of a training step: one of them died, "
            f"or hung for longer than the group's timeout ({error}). This step is half done on this rank, and the "
            "group cannot be used again: start all ranks anew from the last saved state"
        ) from error


@contextmanager
def naming_absence(ranks: Ranks | None, call: str) -> Iterator[None]:
    """The same for what ranks agree on before they train, in a `call` that all of them make."""
    try:
        yield
    except RuntimeError as error:
        if ranks is None or not _is_from_network(error):
            raise
        raise RankError(
            f"rank {ranks.rank} got no answer from the other {ranks.world - 1} in {call}: one of them died, hung for "
            f"longer than the group's timeout, or did not call it ({error}). Nothing was trained. The group cannot be "
            "used again: start all ranks anew, and see that all of them come here"
        ) from error


def _is_from_network(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(place in str(error) for place in _GLOO)
