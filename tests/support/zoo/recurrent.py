"""Cells unrolled in Python: deep graphs of small ops whose weights are read at every step."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.zoo.case import Case, seeded


class Unrolled(nn.Module):
    """Predicts the next value of a series from a cell's hidden state."""

    def __init__(self, cell: nn.RNNCellBase, width: int) -> None:
        super().__init__()
        self.cell = cell
        self.head = nn.Linear(width, 1)
        self.width = width

    def forward(self, series: Tensor) -> Tensor:
        hidden = series.new_zeros(series.shape[0], self.width)
        state = (hidden, hidden) if isinstance(self.cell, nn.LSTMCell) else hidden
        guesses = []
        for now in series[:, :-1].unbind(1):
            state = self.cell(now[:, None], state)
            guesses.append(self.head(state[0] if isinstance(state, tuple) else state))
        return F.mse_loss(torch.cat(guesses, 1), series[:, 1:])


@seeded
def lstm() -> Case:
    """Two states from step to step."""
    return Case(Unrolled(nn.LSTMCell(1, 128), 128), (torch.randn(64, 33).cumsum(1),))


@seeded
def gru() -> Case:
    """One state from step to step."""
    return Case(Unrolled(nn.GRUCell(1, 128), 128), (torch.randn(64, 33).cumsum(1),))
