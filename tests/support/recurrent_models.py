"""Models with nn.LSTM, nn.GRU and nn.RNN: any of their options, and those that people forecast and read with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphopt.device.measure import peak_bytes
from graphopt.device.storages import tensors_in

F = nn.functional


@dataclass(frozen=True)
class Options:
    """Of one module, of its input, and of what the loss is made of: some of "y", "h" and "c"."""

    kind: str = "LSTM"
    features: int = 5
    hidden: int = 7
    layers: int = 1
    steps: int = 6
    batch: int = 4
    nonlinearity: str = "tanh"
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    projection: int = 0
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    state_given: bool = False
    unbatched: bool = False
    calls: int = 1
    linear_before: bool = True
    uses: str = "y"

    @property
    def input_shape(self) -> tuple[int, ...]:
        if self.unbatched:
            return self.steps, self.features
        first = (self.batch, self.steps) if self.batch_first else (self.steps, self.batch)
        return *first, self.features


def random_options(seed: int) -> Options:
    """Any that torch takes."""
    draw = random.Random(seed)
    kind = draw.choice(["LSTM", "LSTM", "GRU", "RNN"])
    layers, hidden = draw.choice([1, 1, 2, 3]), draw.choice([2, 5, 8, 19, 33])
    dtype = draw.choice([*[torch.float32] * 4, torch.float64, torch.bfloat16])
    autocast = dtype is torch.float32 and draw.random() < 0.2
    unbatched = draw.random() < 0.15
    return Options(
        kind=kind,
        features=draw.choice([1, 3, 8, 17, 32]),
        hidden=hidden,
        layers=layers,
        steps=draw.choice([1, 2, 5, 9, 12]),
        batch=1 if unbatched else draw.choice([1, 2, 4, 7, 16]),
        nonlinearity=draw.choice(["tanh", "relu"]),
        bias=draw.random() < 0.75,
        batch_first=draw.random() < 0.5,
        dropout=draw.choice([0.0, 0.3]) if layers > 1 else 0.0,
        bidirectional=draw.random() < 0.4,
        projection=draw.randint(1, hidden - 1) if kind == "LSTM" and draw.random() < 0.25 else 0,
        dtype=dtype,
        autocast=autocast,
        state_given=draw.random() < 0.5,
        unbatched=unbatched,
        # autocast's cache casts the weights of two calls once, of which a captured graph knows nothing
        calls=2 if draw.random() < 0.15 and not autocast else 1,
        linear_before=draw.random() < 0.6,
        # of c alone a projection of a single step has no gradient at all in eager, and zeros in a captured graph
        uses=draw.choice(["y", "yh", "yhc", "h", "hc"]),
    )


class AnyRecurrent(nn.Module):
    """A linear layer or none, the module, and a loss of its outputs; given states are parameters."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        sizes = options.features, options.hidden, options.layers
        more: dict[str, object] = {"proj_size": options.projection} if options.projection else {}
        if options.kind == "RNN":
            more["nonlinearity"] = options.nonlinearity
        self.before = nn.Linear(sizes[0], sizes[0], dtype=options.dtype) if options.linear_before else nn.Identity()
        self.recurrent = getattr(nn, options.kind)(
            *sizes,
            bias=options.bias,
            batch_first=options.batch_first,
            dropout=options.dropout,
            bidirectional=options.bidirectional,
            dtype=options.dtype,
            **more,
        )
        rows = options.layers * (2 if options.bidirectional else 1)
        widths = [options.projection or options.hidden, *([options.hidden] if options.kind == "LSTM" else [])]
        states = [torch.randn(rows, 1, width, dtype=options.dtype) for width in widths]
        self.states = nn.ParameterList(states if options.state_given else [])

    def forward(self, x: Tensor) -> Tensor:
        options = self.options
        loss = torch.zeros(())
        with torch.autocast("cpu", torch.bfloat16, enabled=options.autocast):
            x, state = self.before(x), self._first()
            for _ in range(options.calls):
                y, last = self.recurrent(x, state)
                state = last if options.calls > 1 else state
                h, *c = last if isinstance(last, tuple) else (last,)
                loss = loss + y.float().square().mean() if "y" in options.uses else loss
                loss = loss + h.float().sin().sum() if "h" in options.uses else loss
                loss = loss + c[0].float().cos().sum() if "c" in options.uses and c else loss
        return loss

    def _first(self) -> Tensor | tuple[Tensor, ...] | None:
        if not self.options.state_given:
            return None
        batch = self.options.batch
        states = tuple(s[:, 0] if self.options.unbatched else s.expand(-1, batch, -1).contiguous() for s in self.states)
        return states if self.options.kind == "LSTM" else states[0]


class Normed(nn.Module):
    """A normalisation in front of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(64, 64, batch_first=True), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.recurrent((x - x.mean()) / x.std())[0]
        for _ in range(20):
            h = h.sin() * h
        return self.head(h).square().mean()


class Reader(nn.Module):
    """Convolutions over a line of text, and a stack of bidirectional LSTMs along it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.recurrent, self.head = nn.LSTM(32 * 8, 64, 2, bidirectional=True, dropout=0.2), nn.Linear(128, 11)

    def forward(self, image: Tensor) -> Tensor:
        columns = self.convolutions(image).permute(3, 0, 1, 2).flatten(2)
        return self.head(self.recurrent(columns)[0]).log_softmax(-1).square().mean()


class Forecaster(nn.Module):
    """An encoder hands its state to a decoder that reads its own guesses."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(8, 64, 2, dropout=0.1, batch_first=True)
        self.decoder = nn.GRU(1, 64, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(64, 1)

    def forward(self, past: Tensor, future: Tensor) -> Tensor:
        state, guess, guesses = self.encoder(past)[1], past[:, -1:, :1], []
        for _ in range(future.shape[1]):
            h, state = self.decoder(guess, state)
            guess = self.head(h)
            guesses.append(guess)
        return F.mse_loss(torch.cat(guesses, 1), future)


class Stacked(nn.Module):
    """Three layers in both directions, with dropout between them; the last states count too."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(32, width, 3, bidirectional=True, dropout=0.3, batch_first=True)
        self.head = nn.Linear(2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, (last, _) = self.recurrent(x)
        return self.head(h).square().mean() + last.square().mean()


#: Models that are captured whole, with a batch.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "normed LSTM": (Normed, lambda: (torch.randn(64, 16, 64),)),
    "convolutions and LSTM": (Reader, lambda: (torch.randn(8, 1, 32, 64),)),
    "encoder and decoder": (Forecaster, lambda: (torch.randn(64, 24, 8), torch.randn(64, 6, 1))),
    "bidirectional stack": (Stacked, lambda: (torch.randn(32, 40, 32),)),
}


def step_of(model: nn.Module, run: Callable[..., Tensor], batch: Sequence[Any]) -> list[Tensor]:
    """Loss, gradients and the generator's state."""
    torch.manual_seed(7)
    model.zero_grad(set_to_none=True)
    loss = run(*batch)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None), torch.get_rng_state()]


def measured_bytes(model: nn.Module, batch: Sequence[Any]) -> int:
    """Of one step."""
    model.zero_grad(set_to_none=True)
    held = [*model.parameters(), *model.buffers(), *tensors_in(batch)]
    return peak_bytes(lambda: model(*batch).backward(), held, "cpu")
