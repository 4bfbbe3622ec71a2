"""What the ranks' micro-batches compute, compared: their ops, whatever the shapes of their batches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from torch import fx

from graphopt.base.errors import PlanMismatchError
from graphopt.device.messages import gather
from graphopt.device.ranks import Ranks
from graphopt.graph.fingerprint import spell_inputs, spell_program
from graphopt.graph.nodes import is_collective, is_wait, source_line
from graphopt.graph.roles import RUN_ONCE
from graphopt.graph.step_graph import tensors_of
from graphopt.step.micro_batches.micro_graph import Micro
from graphopt.step.ranks.header import Header, number_of

#: The number of a model that sends nothing.
NOTHING = number_of([])


@dataclass(frozen=True)
class ProgramNumbers:
    """Equal for graphs that compute the same; for batches of the same shapes; and for models that send the same."""

    program: int = 0
    inputs: int = 0
    messages: int = 0


class Programs:
    """Knows the numbers of a step's graphs, and which differences were told of."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._numbers: dict[Micro, ProgramNumbers] = {}
        self._is_told = False

    def numbers(self, micro: Micro) -> ProgramNumbers:
        """Of a graph; found once."""
        if micro not in self._numbers:
            module = micro.graph.captured.step.graph_module
            program = [line for _, line in spell_program(module)]
            own = number_of(messages_of(micro, of_model=True))
            self._numbers[micro] = ProgramNumbers(number_of(program), number_of(spell_inputs(module)), own)
        return self._numbers[micro]

    def check(self, headers: Sequence[Header], micro: Micro) -> None:
        """Raise PlanMismatchError where batches of the same shapes go through different programs.

        Batches of other shapes may take another way through the same model: that is warned of, once. A collective
        call where programs differ: all ranks have the same headers.
        """
        if len({header.program for header in headers}) == 1:
            return
        alike = len({header.inputs for header in headers}) == 1
        if not alike and self._is_told:
            return
        difference = self._difference(micro)
        if alike:
            raise PlanMismatchError(
                f"the ranks would train different models: {difference}. Each rank must have the same model, in the "
                "same mode, and the same loss"
            )
        self._is_told = True
        warnings.warn(
            f"graphopt: the ranks' batches have different shapes and run different ops: {difference}. That is right "
            "where the model takes another way for another shape, and wrong where the ranks have different models",
            stacklevel=2,
        )

    def _difference(self, micro: Micro) -> str:
        """The first op that differs, for people."""
        ops = spell_program(micro.graph.captured.step.graph_module)
        mine = "\n".join(f"{line}\t{source_line(node)}" for node, line in ops)
        every = [text.decode().splitlines() for text in gather(self._ranks, mine.encode())]
        # the code may stand elsewhere on another machine
        bare = [[line.partition("\t")[0] for line in lines] for lines in every]
        rank = next(rank for rank, lines in enumerate(bare) if lines != bare[0])
        pairs = zip_longest(bare[0], bare[rank], fillvalue="")
        place = next(i for i, (one, other) in enumerate(pairs) if one != other)
        return f"rank 0 has {_shown(every[0], place)} where rank {rank} has {_shown(every[rank], place)}"


def messages_of(micro: Micro, *, of_model: bool) -> list[str]:
    """What the model itself, or else the step, sends to other ranks in a micro-batch, a line for each message."""
    graph = micro.graph.captured.step.graph_module.graph
    sends = (node for node in graph.nodes if is_collective(node) and not is_wait(node))
    return [_spelled_message(node) for node in sends if of_model is not bool(node.meta.get(RUN_ONCE))]


def _spelled_message(node: fx.Node) -> str:
    """A collective, and what it sends."""
    (value,) = tensors_of(node.all_input_nodes[0])
    how = [argument for argument in node.args[1:] if isinstance(argument, (str, int))][:-1]
    return f"{node.target.__name__} of {value.numel()} {value.dtype} {how}"  # type: ignore[union-attr]


def _shown(lines: Sequence[str], place: int) -> str:
    if place >= len(lines):
        return "no more ops"
    line, _, source = lines[place].partition("\t")
    return f"{line} at {source}" if source else line
