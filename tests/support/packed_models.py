"""Models over packed sequences: as people tag, classify and generate with, and with any options."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from tests.support.recurrent_models import AnyRecurrent

F = nn.functional


class Tagger(nn.Module):
    """Each step of each sequence gets a tag."""

    def __init__(self, kind: str = "GRU", *, sort: bool = True) -> None:
        super().__init__()
        self.embedding, self.head, self.sort = nn.Embedding(100, 32), nn.Linear(96, 8), sort
        self.recurrent = getattr(nn, kind)(32, 48, bidirectional=True, batch_first=True)

    def forward(self, ids: Tensor, lengths: Tensor, tags: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=not self.sort)
        h, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True, total_length=ids.shape[1])
        return F.cross_entropy(self.head(h.tanh()).flatten(0, 1), tags.flatten())


class _Embedded(nn.Module):
    """An embedding, a recurrent module and a linear layer."""

    def __init__(self, kind: str = "LSTM", **options: object) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.recurrent = getattr(nn, kind)(16, 24, batch_first=True, **options)
        width = (options.get("proj_size") or 24) * (2 if options.get("bidirectional") else 1)  # type: ignore[operator]
        self.head = nn.Linear(width, 5)

    def packed(self, ids: Tensor, lengths: Tensor | list[int]) -> PackedSequence:
        return pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)


class Classifier(_Embedded):
    """Of sequences that the model sorts itself, by their last states."""

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        lengths, order = lengths.sort(descending=True)
        _, (h, _) = self.recurrent(pack_padded_sequence(self.embedding(ids[order]), lengths, batch_first=True))
        return self.head(torch.cat([h[-2], h[-1]], -1)).square().mean()


class Generator(_Embedded):
    """What comes next, for each row of the packed sequences; targets are packed alike."""

    def forward(self, ids: Tensor, lengths: Tensor | list[int]) -> Tensor:
        wanted = pack_padded_sequence(ids % 5, lengths, batch_first=True, enforce_sorted=False)
        return F.cross_entropy(self.head(self.recurrent(self.packed(ids, lengths))[0].data), wanted.data)


class Masked(_Embedded):
    """It counts the lengths itself."""

    def forward(self, ids: Tensor) -> Tensor:
        h, lengths = pad_packed_sequence(self.recurrent(self.packed(ids, (ids != 0).sum(1).cpu()))[0])
        return (self.head(h).square().mean(-1).sum(0) / lengths).mean()


class OfSequences(_Embedded):
    """Of sequences that are given one by one."""

    def forward(self, *ids: Tensor) -> Tensor:
        return self.recurrent(pack_sequence([self.embedding(i) for i in ids], enforce_sorted=False))[0].data.sin().sum()  # type: ignore[no-any-return]


class OfPacked(_Embedded):
    """Of sequences that come packed."""

    def forward(self, packed: PackedSequence) -> Tensor:
        h, last = self.recurrent(packed._replace(data=self.embedding(packed.data)))
        return self.head(h.data).square().mean() + last[0].sin().mean()


class Pairs(_Embedded):
    """Two calls of one module."""

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        left, right = (self.recurrent(self.packed(each, lengths))[1] for each in (ids, ids.flip(1)))
        return self.head(left[-1] * right[-1]).square().mean()


class Reduced(_Embedded):
    """In autocast."""

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.head(self.recurrent(self.packed(ids, lengths))[0].data).float().square().mean()


class Continued(_Embedded):
    """From states that are given."""

    def forward(self, ids: Tensor, lengths: Tensor, state: Tensor) -> Tensor:
        h, last = self.recurrent(self.packed(ids, lengths), state)
        return self.head(pad_packed_sequence(h, padding_value=0.5)[0]).square().mean() + last.sin().sum()


class Learned(_Embedded):
    """How long the sequences are depends on what it learned."""

    def forward(self, ids: Tensor) -> Tensor:
        lengths = (self.embedding(ids).square().sum(-1) > 0).sum(1)
        return self.head(self.recurrent(self.packed(ids, lengths))[0].data).square().mean()


class AnyPacked(AnyRecurrent):
    """Any options, with sequences of any lengths, packed and padded again."""

    def __init__(self, options: object, lengths: Tensor) -> None:
        super().__init__(options)  # type: ignore[arg-type]
        self.lengths = lengths

    def forward(self, x: Tensor) -> Tensor:
        options = self.options
        loss = torch.zeros(())
        with torch.autocast("cpu", torch.bfloat16, enabled=options.autocast):
            packed = pack_padded_sequence(self.before(x), self.lengths, options.batch_first, enforce_sorted=False)
            state = self._first()
            for _ in range(options.calls):
                y, last = self.recurrent(packed, state)
                state = last if options.calls > 1 else state
                h, *c = last if isinstance(last, tuple) else (last,)
                padded, _ = pad_packed_sequence(y, options.batch_first)
                loss = loss + padded.float().square().mean() if "y" in options.uses else loss
                loss = loss + h.float().sin().sum() if "h" in options.uses else loss
                loss = loss + c[0].float().cos().sum() if "c" in options.uses and c else loss
        return loss


def lengths_of(rows: int = 8, longest: int = 9) -> Tensor:
    """In no order."""
    lengths = torch.randint(1, longest + 1, (rows,))
    lengths[rows // 2] = longest
    return lengths


def ids_of(rows: int = 8, longest: int = 9) -> Tensor:
    return torch.randint(1, 50, (rows, longest))


def masked_ids() -> Tensor:
    return ids_of() * (torch.arange(9) < lengths_of()[:, None])


#: Models that are one graph, with a batch.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[object, ...]]]] = {
    "classifier": (
        lambda: Classifier(bidirectional=True, num_layers=2, dropout=0.3),
        lambda: (ids_of(), lengths_of()),
    ),
    "generator": (lambda: Generator("GRU", num_layers=2), lambda: (ids_of(), lengths_of())),
    "a list of lengths": (lambda: Generator(proj_size=7), lambda: (ids_of(), lengths_of().tolist())),
    "lengths of a mask": (lambda: Masked("GRU", bidirectional=True), lambda: (masked_ids(),)),
    "pack_sequence": (lambda: OfSequences(proj_size=5), lambda: tuple(ids_of(1, int(n))[0] for n in lengths_of(4))),
    "packed input": (
        lambda: OfPacked(bidirectional=True),
        lambda: (pack_padded_sequence(ids_of(), lengths_of(), batch_first=True, enforce_sorted=False),),
    ),
    "sorted packed input": (
        lambda: OfPacked(num_layers=2, bias=False),
        lambda: (pack_padded_sequence(ids_of(), lengths_of().sort(descending=True)[0], batch_first=True),),
    ),
    "called twice": (lambda: Pairs("GRU"), lambda: (ids_of(4, 5), lengths_of(4, 5))),
    "autocast": (lambda: Reduced(), lambda: (ids_of(4, 5), lengths_of(4, 5))),
    "given states": (
        lambda: Continued("RNN", nonlinearity="relu", bidirectional=True),
        lambda: (ids_of(), lengths_of(), torch.randn(2, 8, 24)),
    ),
}


def tagged_batch(rows: int = 32, longest: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, lengths and tags for a Tagger, the longest sequence first."""
    lengths = torch.randint(1, longest + 1, (rows,)).sort(descending=True).values
    lengths[0] = longest
    return torch.randint(0, 100, (rows, longest)), lengths, torch.randint(0, 8, (rows, longest))
