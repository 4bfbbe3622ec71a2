"""What graphopt imports, captures, plans and compiles in the middle of training moves no generator of the user's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_TRAINS = """
import random, sys
import numpy as np
import torch
from torch import nn

class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.GRU(16, 16)

    def forward(self, x):
        return self.second(self.first(x).relu()[None])[0]

class Draws(Whole):
    def forward(self, x):
        return self.first(x) * random.random() * float(np.random.rand()) + torch.rand(16)

moved = set()

def draw(event, args):
    # some modules draw when they are imported, such as rich: here each does
    if event == "import" and watched[0]:
        moved.add(args[0])
        random.random()
        np.random.rand()
        torch.default_generator.manual_seed(len(moved))

def states():
    numpys = np.random.get_state()
    return random.getstate(), numpys[1].tolist(), numpys[2], torch.get_rng_state().tolist()

watched = [False]
kind = sys.argv[1]
inputs, model = torch.ones(8, 16), {"whole": Whole, "draws": Draws, "step": Whole}[kind]()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
sys.addaudithook(draw)
import graphopt, graphopt.device.snapshot
random.seed(0), np.random.seed(0), torch.manual_seed(0)
before = states()
watched[0] = True
if kind == "step":
    step = graphopt.train_step(model, lambda out, y: out.square().sum(), optimizer, "1GiB", clip=graphopt.ClipNorm(1.0))
    run = lambda x: step(x, x)
else:
    graphopt.optimize(model, "1GiB")
    run = lambda x: model(x).sum().backward()
assert states() == before, "planning"
for number, x in enumerate((inputs, inputs, inputs[:7])):
    random.seed(number), np.random.seed(number), torch.manual_seed(number)
    if kind == "draws":
        random.random(), np.random.rand(), torch.rand(16)
        before = states()
        random.seed(number), np.random.seed(number), torch.manual_seed(number)
    else:
        before = states()
    run(x)
    assert states() == before, number
print(len(moved), "modules were imported")
"""


@pytest.fixture(scope="module")
def new_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which nothing is compiled when the first of these tests begins."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "draws", "step"])
def test_no_import_of_ours_moves_a_generator(kind: str, new_cache: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(new_cache)}
    command = [sys.executable, "-W", "ignore", "-c", _TRAINS, kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) > 100
