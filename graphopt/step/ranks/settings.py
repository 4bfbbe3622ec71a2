"""What decides how a step changes parameters, by name and as text: what all ranks must have alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch

from graphopt.base.errors import UsageError
from graphopt.device.messages import gather
from graphopt.device.ranks import Ranks
from graphopt.step.optimizer.optimizer_view import OptimizerView
from graphopt.step.options import StepOptions

#: Text by what it is the text of.
Settings = Mapping[str, str]
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype)
_SHOWN = 3
_BETWEEN_PARAMETERS = "; "


class OptimizerSettings:
    """The optimizer's class, and of each group its options and parameters, as they are when asked.

    The text of a group's parameters is kept for as long as the group holds the same ones. `shapes` are those of
    parameters of which ranks have rows, by name.
    """

    def __init__(self, view: OptimizerView, shapes: Mapping[str, Sequence[int]]) -> None:
        self._view, self._shapes = view, shapes
        self._spelled_parameters: dict[tuple[int, ...], str] = {}

    def now(self) -> dict[str, str]:
        """Reads the number of an option that is a tensor, as the step itself does."""
        optimizer = self._view.optimizer
        kind = type(optimizer)
        found = {
            "the optimizer": f"{kind.__module__}.{kind.__qualname__}",
            "how it updates": self._view.kind,
            "the number of parameter groups": str(len(optimizer.param_groups)),
        }
        for number, group in enumerate(optimizer.param_groups):
            found |= {f"{key} of group {number}": spelled_option(v) for key, v in group.items() if key != "params"}
            found[f"the parameters of group {number}"] = self._spelled(group["params"])
        return found

    def _spelled(self, stepped: Sequence[torch.Tensor]) -> str:
        key = tuple(map(id, stepped))  # the view holds these tensors, so that an id stays one tensor's
        if key not in self._spelled_parameters:
            self._spelled_parameters[key] = _BETWEEN_PARAMETERS.join(map(self._spelled_parameter, stepped))
        return self._spelled_parameters[key]

    def _spelled_parameter(self, stepped: torch.Tensor) -> str:
        name = self._view.name_of(stepped)
        master = " (a master)" if name in self._view.masters else ""
        return f"{name} {list(self._shapes.get(name, stepped.shape))} {stepped.dtype}{master}"


def spelled_options(options: StepOptions) -> dict[str, str]:
    """What is asked of the step, but for how a rank cuts its batch and for its budget, which are its own."""
    return {
        "accumulate": "'auto'" if options.accumulate == "auto" else "a number",
        "clip": repr(options.clip),
        "loss_scale": repr(options.loss_scale),
        "weights": spelled_option(options.weights),
        "compress": repr(options.compress),
        "on_excess": options.on_excess,
    }


def spelled_option(value: object) -> str:
    """The same in every process: a plain value or a container of such as it is, of all else what it is."""
    if isinstance(value, torch.Tensor):
        return repr(value.item()) if value.numel() == 1 else f"{list(value.shape)} {value.dtype}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(spelled_option, value)) + ")"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {spelled_option(item)}" for key, item in value.items()) + "}"
    if isinstance(value, _PLAIN):
        return repr(value)
    named: Any = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def lines_of(settings: Settings) -> list[str]:
    """A line for each."""
    return [f"{name}\t{value}" for name, value in settings.items()]


def difference_error(ranks: Ranks, settings: Settings) -> UsageError | None:
    """The error for ranks whose settings are not all alike: which differ, with both values; None where they are.

    A collective call.
    """
    texts = gather(ranks, "\n".join(lines_of(settings)).encode())
    every = [dict(line.split("\t", 1) for line in text.decode().splitlines()) for text in texts]
    rank = next((rank for rank, one in enumerate(every) if one != every[0]), None)
    if rank is None:
        return None
    first, other = every[0], every[rank]
    names = [name for name in dict.fromkeys((*first, *other)) if first.get(name) != other.get(name)]
    found = [_difference(name, first.get(name), other.get(name), rank) for name in names]
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return UsageError(
        f"the ranks would train different things: {'; '.join(found[:_SHOWN])}{more}. Each rank updates its own copy of "
        "the parameters, so that these would drift apart: give all of them the same optimizer, options and loaded state"
    )


def _difference(name: str, first: str | None, other: str | None, rank: int) -> str:
    if first is not None and other is not None and _BETWEEN_PARAMETERS in first + other:
        parts = zip_longest(first.split(_BETWEEN_PARAMETERS), other.split(_BETWEEN_PARAMETERS), fillvalue="no more")
        first, other = next((one, two) for one, two in parts if one != two)
    return f"{name} is {first or 'not there'} on rank 0 and {other or 'not there'} on rank {rank}"
