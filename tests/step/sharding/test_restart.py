"""A rank that is killed, in the middle of a step or of a save, and a restart on another number of ranks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, optim
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import graphopt
from graphopt.base.errors import RankError
from tests.support.ranks import RankError as ProcessError
from tests.support.ranks import run_ranks
from tests.support.sharded import Awkward, global_batch, language_loss, seeded, ulps, whole_parameters

#: Rows of the global batch; steps in all, between two saves, and taken when a rank is killed.
ROWS, STEPS, EVERY, KILLED_AT = 8, 6, 2, 3
VICTIM = 1
#: Units of the last place, from a run that nobody interrupted: sums are over two ranks, or four.
MOST_ULPS = 64


def mine(i: int) -> tuple[Tensor, ...]:
    """This rank's rows of the i-th global batch, the same whatever the number of ranks."""
    each = ROWS // dist.get_world_size()
    first = dist.get_rank() * each
    ids, _ = global_batch(i, 1, ROWS)
    return ids[first : first + each], ids.roll(1, 1)[first : first + each]


def build(compress: Any) -> graphopt.TrainStep:
    model = seeded(Awkward)
    optimizer = optim.AdamW(model.parameters(), lr=1e-3, eps=1e-6)
    scale = graphopt.DynamicLossScale(2.0**8, interval=3)
    options: dict[str, Any] = {"accumulate": 2, "clip": graphopt.ClipNorm(0.5), "loss_scale": scale}
    options |= {"compress": compress, "cost_model": "roofline"}
    return graphopt.train_step(model, language_loss, optimizer, shard=True, **options)


def save(step: graphopt.TrainStep, folder: Path, taken: int) -> None:
    """A folder of its own for each; the file that names all others is written last."""
    weights, state = get_state_dict(step.model, step.optimizer)
    place = folder / f"after {taken}"
    place.mkdir(exist_ok=True)
    torch.save(step.state_dict(), place / f"step of {dist.get_rank()}.pt")
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=place)


def load_last(step: graphopt.TrainStep, folder: Path) -> int:
    """The last one that is whole: how many steps had been taken."""
    last = max(int(place.parent.name.split()[1]) for place in folder.glob("after */.metadata"))
    weights, state = get_state_dict(step.model, step.optimizer)
    held = {"model": weights, "optimizer": state}
    place = folder / f"after {last}"
    dcp.load(held, checkpoint_id=place)
    set_state_dict(step.model, step.optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
    step.load_state_dict([torch.load(each) for each in place.glob("step of *.pt")])
    return last


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_its_backward(victim_does: Callable[[], None]) -> Callable[[bool], None]:
    """Counts the sums over ranks of steps; once armed, dies at three quarters of a step's."""
    before, calls, armed_at = dist.reduce, [0], [0]

    def reduce(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if armed_at[0] and calls[0] == armed_at[0]:
            victim_does()
        return before(*args, **options)

    def arm(is_time: bool) -> None:
        if is_time:
            armed_at[0] = calls[0] + calls[0] // KILLED_AT * 3 // 4

    dist.reduce = reduce
    return arm


def interrupted(folder: Path, how: str, compress: Any) -> None:
    """Train and save until a rank is killed; survivors write down what they see of it."""
    step, rank = build(compress), dist.get_rank()
    arm = in_its_backward(die) if rank == VICTIM and how == "backward" else lambda _: None
    for i in range(STEPS):
        arm(i == KILLED_AT)
        rows, start = [p.detach().clone() for p in step.model.parameters()], time.monotonic()
        try:
            step(*mine(i))
        except RankError:
            unchanged = all(map(torch.equal, rows, step.model.parameters()))
            (folder / f"survivor {rank}").write_text(f"{time.monotonic() - start} {unchanged}")
            return
        if how == "save" and i == KILLED_AT and rank == VICTIM:
            dcp.FileSystemWriter.write_data = lambda *_args, **_options: die()
        if (i + 1) % EVERY == 0:
            save(step, folder, i + 1)


def goes_on(folder: Path | None, compress: Any) -> tuple[list[float], dict[str, Tensor], float]:
    """Losses, parameters and the loss scale, from the last save on, or from the beginning."""
    step = build(compress)
    first = load_last(step, folder) if folder else 0
    losses = [float(step(*mine(i)).loss) for i in range(first, STEPS)]
    return losses, whole_parameters(step), step.loss_scale


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("before", "after", "how", "compress"),
    [(4, 2, "backward", None), (2, 4, "save", None), (4, 2, "backward", graphopt.EightBit())],
)
def test_a_killed_rank_costs_the_steps_since_the_last_save(
    before: int, after: int, how: str, compress: Any, tmp_path: Path
) -> None:
    with pytest.raises(ProcessError, match=f"rank {VICTIM}: the process died"):
        run_ranks(before, interrupted, tmp_path, how, compress)
    if how == "backward":
        seen = [(tmp_path / f"survivor {r}").read_text().split() for r in range(before) if r != VICTIM]
        assert all(float(seconds) < 20 and unchanged == "True" for seconds, unchanged in seen)
    losses, parameters, scale = run_ranks(after, goes_on, tmp_path, compress)[0]
    expected, whole, expected_scale = run_ranks(before, goes_on, None, compress)[0]
    assert len(losses) == STEPS - EVERY and scale == expected_scale > 2.0**8
    if compress is not None:  # rows, and with them blocks that have a step in common, are cut in another way
        torch.testing.assert_close(losses, expected[EVERY:], rtol=1e-3, atol=0)
        return
    apart = max(ulps(parameters[name], value) for name, value in whole.items())
    loss_ulps = max(abs(a - b) / b / 2.0**-23 for a, b in zip(losses, expected[EVERY:], strict=True))
    print(f"losses {loss_ulps:.1f}, parameters {apart:.1f} ulps")
    assert loss_ulps < 8 and apart < MOST_ULPS
