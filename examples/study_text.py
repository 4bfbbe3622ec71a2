"""Two small transformers read what Python brings along: one guesses the next word of its manual, one names a source.

python examples/study_text.py --mem-budget 3MB
python examples/study_text.py --model bert --mem-budget 3MB
graphopt plan examples/study_text.py:build --mem-budget 3MB

`--mem-budget none` is the same loop without graphopt: it prints the same losses, to the bit.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphopt

BATCH, STEPS, LENGTH, WIDTH, WORDS, RATE, WARM_UP = 16, 90, 24, 32, 400, 1e-2, 10
SOURCES = ("_pydecimal", "argparse", "inspect", "tarfile")
#: GPT: mean loss a word on held-out text, in nats. BERT: the share of held-out pieces whose source it names.
GOALS = {"gpt": 3.9, "bert": 0.55}
Batch = tuple[Tensor, Tensor]


class Transformer(nn.Module):
    """Two layers; causal with an output at each place (GPT), or one output from the mean of all places (BERT)."""

    def __init__(self, outputs: int, causal: bool) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, outputs))
        self.causal = causal
        self.register_buffer("future", torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1))

    def forward(self, words: Tensor) -> Tensor:
        embedded = self.word(words) + self.place(torch.arange(LENGTH))
        hidden = self.blocks(embedded, mask=self.future if self.causal else None, is_causal=self.causal)
        return self.head(hidden if self.causal else hidden.mean(1))


def numbers_of(texts: Sequence[str]) -> list[Tensor]:
    """Each text as numbers of its words: the most frequent of all texts, and 0 for the others."""
    words = [re.findall(r"\w+|[^\w\s]", text) for text in texts]
    common = Counter(word for text in words for word in text).most_common(WORDS - 1)
    number = {word: place for place, (word, _) in enumerate(common, 1)}
    return [torch.tensor([number.get(word, 0) for word in text]) for text in words]


@cache
def data(name: str) -> tuple[Batch, Batch]:
    """Inputs and targets to train on, and held out, in pieces of LENGTH words."""
    if name == "gpt":
        texts = ["\n".join(topics[key] for key in sorted(topics))]
    else:
        texts = [Path(str(find_spec(source).origin)).read_text("utf-8") for source in SOURCES]
    parts: tuple[list[Batch], list[Batch]] = ([], [])
    for label, words in enumerate(numbers_of(texts)):
        pieces = words.unfold(0, LENGTH + 1, LENGTH)
        targets = pieces[:, 1:] if name == "gpt" else torch.full((len(pieces),), label)
        is_held_out = torch.arange(len(pieces)) % (20 if name == "gpt" else 5) == 4
        for part, chosen in zip(parts, (~is_held_out, is_held_out), strict=True):
            part.append((pieces[chosen, :LENGTH], targets[chosen]))
    trained, held_out = ((torch.cat(x), torch.cat(y)) for x, y in (zip(*part, strict=True) for part in parts))
    return trained, held_out


def batches(name: str, rows: int = BATCH) -> Iterator[Batch]:
    inputs, targets = data(name)[0]
    while True:
        chosen = torch.randint(len(inputs), (rows,))
        yield inputs[chosen], targets[chosen]


def loss_of(guesses: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(guesses.flatten(0, -2), targets.flatten())


@torch.no_grad()
def quality(name: str, model: nn.Module) -> float:
    """What GOALS counts."""
    inputs, targets = data(name)[1]
    guesses = model.eval()(inputs)
    model.train()
    return float(loss_of(guesses, targets) if name == "gpt" else (guesses.argmax(1) == targets).double().mean())


def rate(step: int, steps: int) -> float:
    """The share of the peak rate: up to it, then down to nothing."""
    return min((step + 1) / WARM_UP, (steps - step) / (steps - WARM_UP))


def optimizer_of(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE)


def build(name: str = "gpt", seed: int = 0) -> tuple[nn.Module, Batch, Callable[[Tensor, Tensor], Tensor]]:
    torch.manual_seed(seed)
    return Transformer(WORDS, True) if name == "gpt" else Transformer(len(SOURCES), False), next(batches(name)), loss_of


def main(argv: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description="Small transformers read what Python brings along.")
    parser.add_argument("--model", choices=tuple(GOALS), default="gpt")
    parser.add_argument("--mem-budget", default="3MB")
    args = parser.parse_args(argv)

    model, (inputs, _), _ = build(args.model)
    optimizer = optimizer_of(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, STEPS))
    if args.mem_budget != "none":
        # the loss is outside of the model: the first step shows what it takes, and says so
        model = graphopt.optimize(model, args.mem_budget, example_inputs=inputs, optimizer=optimizer)
        print(model.graphopt.report)

    losses = []
    for step, (inputs, targets) in zip(range(STEPS), batches(args.model), strict=False):
        loss = loss_of(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step:3d}  loss {losses[-1]:.3f}")
    found, goal = quality(args.model, model), GOALS[args.model]
    is_reached = found <= goal if args.model == "gpt" else found >= goal
    print(f"{found:.3f} on what is held out; the goal, {goal}, is {'' if is_reached else 'not '}reached")
    return losses


if __name__ == "__main__":
    main()
