"""What only logs does not break a model in two."""

from __future__ import annotations

import copy
import logging
import warnings

import pytest
import torch
from torch import nn

import graphopt

LOGGER = logging.getLogger(__name__)


class Talks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        LOGGER.warning("rows %s", x.shape[0])
        y = self.layer(x)
        warnings.warn("careful", stacklevel=1)
        logging.warning("half way")
        return y.square().sum()


def test_it_is_one_graph_with_eagers_gradients() -> None:
    torch.manual_seed(0)
    eager, x = Talks(), torch.randn(2, 4)
    model = graphopt.optimize(copy.deepcopy(eager), "1MiB", cost_model="roofline")
    for module in (model, eager):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(x).backward()
    assert len(model.graphopt.session.graphs) == 1
    assert torch.equal(model.layer.weight.grad, eager.layer.weight.grad)


def test_a_training_step_takes_it_too() -> None:
    model = Talks()
    step = graphopt.train_step(model, None, torch.optim.SGD(model.parameters(), lr=0.1), cost_model="roofline")
    before = model.layer.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(torch.randn(2, 4))
    assert not torch.equal(before, model.layer.weight)


def test_gpt2_as_it_comes_is_one_graph() -> None:
    """transformers says once that it takes its default loss."""
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 32, "n_positions": 16}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).train()
    ids = torch.arange(16).reshape(1, 16)
    graphopt.optimize(model, "64MiB", cost_model="roofline")
    model(input_ids=ids, labels=ids).loss.backward()
    assert len(model.graphopt.session.graphs) == 1
