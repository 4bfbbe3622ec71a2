"""Ranks go into every step together: all know that all can take it, or all raise the same.

Nobody sends gradients before every rank has captured and planned what it needs, so that an error on one
of them, or a graph that would send other messages, is an error on all and leaves nobody waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from graphopt.base.errors import UsageError
from graphopt.device.messages import gather
from graphopt.graph.roles import DESCRIPTOR, Accumulator
from graphopt.graph.step_graph import tensors_of
from graphopt.plan.agreement import raise_together
from graphopt.step.micro_batches.division import Division
from graphopt.step.micro_batches.micro_graph import Micro, MicroCall
from graphopt.step.micro_batches.window import MicroBatch, as_shares, weight_of
from graphopt.step.ranks.exchange import Exchange
from graphopt.step.ranks.header import Header, exchange_headers, number_of
from graphopt.step.ranks.programs import NOTHING, ProgramNumbers, Programs, messages_of
from graphopt.step.ranks.settings import Settings, difference_error, lines_of
from graphopt.step.step_watch import StepWatch
from graphopt.step.tensor_parallel.batches import Batches, number_of_batch


@dataclass(frozen=True)
class Prepared:
    """A batch, cut, and the graphs of its pieces; or the error that came in the way."""

    pieces: tuple[MicroBatch, ...] = ()
    calls: tuple[MicroCall, ...] = ()
    settings: Settings = field(default_factory=dict)
    batch: int = 0
    error: Exception | None = None

    @property
    def micros(self) -> list[Micro]:
        """The distinct graphs, the last micro-batch's first."""
        return list(dict.fromkeys(call.micro for call in reversed(self.calls)))

    @property
    def unplanned(self) -> list[Micro]:
        """The graphs among them that have no plan yet."""
        return [micro for micro in self.micros if not micro.is_planned]


class Lockstep:
    """Prepares steps on all ranks of a group at once. What one rank's watch corrects is planned anew on all."""

    def __init__(
        self,
        exchange: Exchange,
        division: Division,
        watch: StepWatch,
        settings: Callable[[], Settings],
        heed_changes: Callable[[], None],
        *,
        is_sharded: bool,
    ) -> None:
        self.exchange, self.ranks, self.division, self.watch = exchange, exchange.ranks, division, watch
        self.names = exchange.view.names
        self._is_sharded = is_sharded
        self._batches = Batches(exchange.parallel.groups) if exchange.parallel is not None else None
        self._settings, self._heed_changes, self._programs = settings, heed_changes, Programs(exchange.ranks)

    def prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[MicroBatch], list[MicroCall]]:
        """The pieces of a batch, weights as shares of all ranks' batches, and their planned graphs.

        A collective call. Raises on all ranks what one of them raises.
        """
        prepared = self._attempt(lambda: self._resolved(args, kwargs))
        while True:
            headers = exchange_headers(self.ranks, self._header(prepared), self.division.memory.device)
            if any(header.failed for header in headers):
                raise_together(self.ranks, prepared.error)
            if len({header.settings for header in headers}) > 1:
                difference = difference_error(self.ranks, prepared.settings)
                assert difference is not None
                raise difference
            self.exchange.check_wholes()
            _check_weights(headers)
            self._check_messages(headers, prepared)
            self._programs.check(headers, prepared.calls[-1].micro)
            rows = {header.micro_rows for header in headers}
            if self.division.accumulate == "auto" and len(rows) > 1:
                self.division.settle(min(rows), is_cut=True)
                prepared = self._attempt(lambda: self._resolved(args, kwargs))
            elif self.exchange.auto is not None:
                self.exchange.choose(prepared.calls[-1])
                prepared = self._attempt(lambda: self._resolved(args, kwargs))
            elif any(header.is_due for header in headers):
                self.watch.corrects()
            elif not all(header.is_planned for header in headers):
                self._plan(prepared, headers)
            else:
                break
        total = self.exchange.shares([header.weight for header in headers])
        if self._batches is not None:
            self._batches.compare([header.batch for header in headers])
        return as_shares(prepared.pieces, total), list(prepared.calls)

    def _resolved(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Prepared:
        self._heed_changes()
        pieces = self.division.cut(args, kwargs)
        # the last one first: it holds the most
        last = [self.division.resolve(piece) for piece in pieces[-1:]]
        calls = [self.division.resolve(piece, is_last=False) for piece in pieces[:-1]] + last
        self._check_last(calls)
        batch = number_of_batch(args, kwargs) if self._batches is not None else 0
        return Prepared(tuple(pieces), tuple(calls), self._settings(), batch)

    def _check_last(self, calls: Sequence[MicroCall]) -> None:
        sent = {id(call.flat[index]) for call in calls[-1:] for index in call.micro.graph.accumulators}
        for call in calls:
            for index in call.micro.graph.accumulators:
                if id(call.flat[index]) not in sent:
                    name = self.names[id(call.flat[index])]
                    raise UsageError(
                        f"the parameter {name} gets a gradient in some micro-batches, but not in the last one of the "
                        "window, which sends gradients to the other ranks: use the same parameters in each"
                    )

    def _attempt(self, run: Callable[[], Prepared]) -> Prepared:
        try:
            return run()
        except Exception as error:  # raised again when the other ranks know
            return Prepared(error=error)

    def _plan(self, prepared: Prepared, headers: Sequence[Header]) -> None:
        """As one where all ranks have the same graphs to plan, else each for itself: batches may be uneven.

        Where nothing fits beside what was measured, all try without it, unless one knows already that it comes again.
        """
        alike = len({(header.graphs, header.is_planned) for header in headers}) == 1
        failed, error = self._planned(prepared, alike)
        if failed and any(h.may_try for h in headers) and not any(h.is_confirmed for h in headers):
            self.watch.tries_without()
            failed, error = self._planned(prepared, alike)
        if failed:
            raise_together(self.ranks, error)

    def _planned(self, prepared: Prepared, alike: bool) -> tuple[bool, Exception | None]:
        """Whether a rank failed, and the error of this one."""
        memory = self.division.memory
        memory.planners = self.ranks if alike else None
        error: Exception | None = None
        try:
            for micro in prepared.unplanned:
                assert micro.planned
        except Exception as caught:
            error = caught
        finally:
            memory.planners = None
        answers = exchange_headers(self.ranks, Header(failed=error is not None), memory.device)
        return any(answer.failed for answer in answers), error

    def _header(self, prepared: Prepared) -> Header:
        of_last = (self._programs.numbers(call.micro) for call in prepared.calls[-1:])
        numbers = next(of_last, ProgramNumbers())
        return Header(
            weight=weight_of(prepared.pieces),
            micro_rows=self.division.micro_rows,
            graphs=number_of([micro.graph.captured.step.graph_hash for micro in prepared.unplanned]),
            messages=number_of(self._messages(prepared)),
            inside=number_of(self._sent_inside(prepared)),
            batch=prepared.batch,
            settings=number_of(lines_of(prepared.settings)),
            program=numbers.program,
            inputs=numbers.inputs,
            failed=prepared.error is not None,
            is_planned=not prepared.unplanned,
            is_due=self.watch.is_due,
            may_try=self.watch.may_try,
            is_confirmed=self.watch.is_confirmed,
        )

    def _messages(self, prepared: Prepared) -> list[str]:
        """What the last micro-batch sends: gradients of which parameters, in which messages."""
        lines: list[str] = []
        if self._is_sharded:  # every micro-batch gathers and scatters: all must do so alike
            lines += [_spelled_graph(call) for call in prepared.calls]
        for call in prepared.calls[-1:]:
            graph = call.micro.graph.captured.step.graph_module.graph
            lines += [self._gradient(call, node) for node in graph.find_nodes(op="placeholder")]
            lines += messages_of(call.micro, of_model=False)
        return [line for line in lines if line]

    def _gradient(self, call: MicroCall, node: fx.Node) -> str:
        role = node.meta[DESCRIPTOR]
        if not isinstance(role, Accumulator):
            return ""
        return f"the gradient of {self.names[id(call.flat[role.index])]} {list(node.meta['val'].shape)}"

    def _sent_inside(self, prepared: Prepared) -> list[str]:
        """What the model itself sends, micro-batch by micro-batch; where it sends nothing, ranks may have others."""
        every = (self._programs.numbers(call.micro).messages for call in prepared.calls)
        return [f"{place} {each}" for place, each in enumerate(every) if each != NOTHING]

    def _check_messages(self, headers: Sequence[Header], prepared: Prepared) -> None:
        """Raise UsageError, on all ranks, where they would wait for messages of each other that nobody sends."""
        every = [tuple(range(len(headers)))]
        if len({header.messages for header in headers}) > 1:
            self._raise_mismatch(self._messages(prepared), every)
        # what a model in shards sends in its layers goes to those alone that hold shards of the same copy
        groups = self.exchange.parallel.groups if self.exchange.parallel is not None else every
        if any(len({headers[rank].inside for rank in group}) > 1 for group in groups):
            lines = [
                f"{message}, in micro-batch {number}"
                for number, call in enumerate(prepared.calls)
                for message in messages_of(call.micro, of_model=True)
            ]
            self._raise_mismatch(lines, groups)

    def _raise_mismatch(self, mine: Sequence[str], groups: Sequence[Sequence[int]]) -> None:
        texts = [text.decode().splitlines() for text in gather(self.ranks, "\n".join(mine).encode())]
        for first, rank in ((group[0], rank) for group in groups for rank in group[1:]):
            if texts[rank] != texts[first]:
                one, other = texts[first], texts[rank]
                at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), -1)
                both = [some[at] if at >= 0 else f"{len(some)} messages" for some in (one, other)]
                raise UsageError(
                    f"rank {first} would send {both[0]} where rank {rank} would send {both[1]}: every rank must train "
                    "the same parameters with the same options in each step"
                )
        raise AssertionError("ranks send the same after all")


def _spelled_graph(call: MicroCall) -> str:
    step = call.micro.graph.captured.step
    given = [node for node in step.joint.primals if node.name not in step.static_inputs]
    shapes = [list(map(int, tensor.shape)) for node in given for tensor in tensors_of(node)]
    return f"a micro-batch of tensors of the shapes {shapes}, graph {step.graph_hash[:8]}"


def _check_weights(headers: Sequence[Header]) -> None:
    empty = [rank for rank, header in enumerate(headers) if header.weight == 0]
    if empty:
        raise UsageError(
            f"the batch of rank {', '.join(map(str, empty))} weighs nothing: it would send no gradients while the "
            "others wait for them; give every rank something to learn from in each step"
        )
