"""Recurrent networks with attention between them translate names from Spanish to Portuguese (Babel's, of Unicode CLDR).

python examples/study_translation.py --mem-budget 3MB
graphopt plan examples/study_translation.py:build --mem-budget 3MB

`--mem-budget none` is the same loop without graphopt: it prints the same losses, to the bit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from babel import Locale
from torch import Tensor, nn
from torch.nn import functional as F

import graphopt

BATCH, STEPS, LENGTH, WIDTH, RATE, WARM_UP = 32, 150, 24, 32, 1e-2, 10
KINDS = ("territories", "languages", "scripts", "currencies")
END, NOTHING = 0, -100
#: The mean loss a character of held-out translations, in nats, of which the ones before it are known.
GOAL = 1.4
Batch = tuple[Tensor, Tensor, Tensor]


class Translator(nn.Module):
    """One network reads a name, one writes it; each character that it writes attends to all that were read.

    After Bahdanau et al. (2015), with the attention of Vaswani et al. (2017), to which each place has a name.
    """

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.character, self.place = nn.Embedding(characters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.reader, self.writer = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.attention = nn.MultiheadAttention(WIDTH, 4, dropout=0.1, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters))

    def forward(self, names: Tensor, before: Tensor) -> Tensor:
        place = self.place(torch.arange(LENGTH))
        characters = self.character(names) + place
        read, last = self.reader(characters)
        written, _ = self.writer(self.character(before) + place, last)
        found, _ = self.attention(written + place, read + place, read + characters, need_weights=False)
        return self.head(written + found)


@cache
def data() -> tuple[Batch, Batch, int]:
    """Names, translations up to each character, and that character: to train on, held out (every fifth); how many."""
    spanish, portuguese = Locale("es"), Locale("pt")
    of_kinds = [(getattr(spanish, kind), getattr(portuguese, kind)) for kind in KINDS]
    found = {(here[code], there[code]) for here, there in of_kinds for code in here if code in there}
    pairs = sorted(pair for pair in found if max(map(len, pair)) < LENGTH)
    number = {character: place for place, character in enumerate(sorted(set("".join(map("".join, pairs)))), END + 1)}

    def rows(words: list[str], rest: int) -> Tensor:
        return torch.tensor([[*map(number.get, word), END, *[rest] * (LENGTH - 1 - len(word))] for word in words])

    names, targets = rows([name for name, _ in pairs], END), rows([word for _, word in pairs], NOTHING)
    before = F.pad(targets[:, :-1].clamp(min=END), (1, 0), value=END)
    is_held_out = torch.arange(len(pairs)) % 5 == 4
    trained, held_out = ((names[part], before[part], targets[part]) for part in (~is_held_out, is_held_out))
    return trained, held_out, len(number) + 1


def batches(rows: int = BATCH) -> Iterator[Batch]:
    names, before, targets = data()[0]
    while True:
        chosen = torch.randint(len(names), (rows,))
        yield names[chosen], before[chosen], targets[chosen]


def loss_of(guesses: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(guesses.flatten(0, 1), targets.flatten(), ignore_index=NOTHING)


@torch.no_grad()
def quality(model: nn.Module) -> float:
    """What GOAL counts."""
    names, before, targets = data()[1]
    loss = loss_of(model.eval()(names, before), targets)
    model.train()
    return float(loss)


def rate(step: int, steps: int) -> float:
    """The share of the peak rate: up to it, then down to nothing."""
    return min((step + 1) / WARM_UP, (steps - step) / (steps - WARM_UP))


def optimizer_of(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE)


def build(seed: int = 0) -> tuple[nn.Module, Batch, Callable[[Tensor, Tensor], Tensor]]:
    torch.manual_seed(seed)
    return Translator(data()[2]), next(batches()), loss_of


def main(argv: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description="Names, translated from Spanish to Portuguese.")
    parser.add_argument("--mem-budget", default="3MB")
    args = parser.parse_args(argv)

    model, (names, before, _), loss_fn = build()
    optimizer = optimizer_of(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, STEPS))
    if args.mem_budget != "none":
        model = graphopt.optimize(model, args.mem_budget, example_inputs=(names, before), optimizer=optimizer)
        print(model.graphopt.report)

    losses = []
    for step, (names, before, targets) in zip(range(STEPS), batches(), strict=False):
        loss = loss_fn(model(names, before), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step:3d}  loss {losses[-1]:.3f}")
    found = quality(model)
    print(f"{found:.3f} nats a character on what is held out; the goal, {GOAL}, is {'not ' * (found > GOAL)}reached")
    return losses


if __name__ == "__main__":
    main()
