"""What each stage of sharing out takes, beside no sharing out, with several micro-batches a step.

python -m benchmarks.sharded_stages [model ...] [--world 2] [--rate 100mbit] [--rounds 7] [--json out.json]

All train the same model with AdamW on the same batches, cut into four, without a limit. Peaks, seconds and differences
are as in `benchmarks.sharded_compressed`; "of fully_shard" is of no sharing out.
"""

from __future__ import annotations

import sys

from benchmarks.sharded import Cell, by_graphopt
from benchmarks.sharded_compressed import cells_of, main
from benchmarks.sharded_models import MODELS

STAGES = (False, "optimizer", "gradients", True)
MICRO_BATCHES = 4


def run_model(name: str, rounds: int) -> list[Cell]:
    """All stages on one model, on this rank; the cells are those of all ranks together."""
    case = MODELS[name]
    ways = [by_graphopt(case, None, f"shard={s!r}", shard=s, accumulate=MICRO_BATCHES) for s in STAGES]
    return cells_of(name, ways, rounds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], run_model, __doc__))
