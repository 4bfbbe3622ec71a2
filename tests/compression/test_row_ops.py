"""The ops that scatter compressed gradients, by themselves."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
import torch.distributed as dist

from graphopt.compression import row_ops
from graphopt.compression.methods import HalfCast
from graphopt.kernels.sharding.transport import label_of
from tests.support.ranks import run_ranks

_HELD_SECONDS = 0.5


def held_for_longer() -> float:
    """Seconds of the end of an exchange whose backend holds its tensors when it has said that all is there."""
    exchange = dist.all_to_all_single

    def holding(*tensors: Any, async_op: bool, **options: Any) -> Any:  # noqa: ARG001
        exchange(*tensors, **options)
        held = [*tensors[:2]]
        del tensors

        def let_go() -> None:
            time.sleep(_HELD_SECONDS)
            held.clear()

        threading.Thread(target=let_go).start()
        return dist.Work()

    dist.all_to_all_single = holding
    dist.Work.wait = lambda *_: True
    assert dist.group.WORLD is not None
    where = row_ops.spell(HalfCast()), label_of(dist.group.WORLD, "rows", dist.group.WORLD), "", 2
    flag, gradient = torch.zeros(()), torch.ones(3, 4)
    wire, received = row_ops.begin_exchange_([gradient], [], [], flag, None, 0, 0.0, *where)
    start = time.monotonic()
    (rows,) = row_ops.end_exchange_(wire, received, [], flag, None, 0, row_ops.flat_shapes([(3, 4)]), *where)
    assert rows.shape == (2 - dist.get_rank(), 4) and bool((rows == 2).all())
    return time.monotonic() - start


def test_a_message_has_arrived_when_the_backend_has_let_go_of_it() -> None:
    """A plan frees its memory next."""
    assert all(seconds > _HELD_SECONDS / 2 for seconds in run_ranks(2, held_for_longer))
