"""A step of which alike layers are captured a few times: shown to do as the whole one does, before it is captured."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import fx

from graphopt.capture.repeated.eager_steps import eager_step
from graphopt.capture.repeated.extend import extend
from graphopt.capture.repeated.periods import NotAlike
from graphopt.capture.repeated.sequence import Place, Sequence, spelled
from graphopt.capture.repeated.stand_in import Left, places_of, stand_in
from graphopt.capture.repeated.whole_graph import names_of_inputs, whole_graph
from graphopt.device.snapshot import training_mode, undone
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.run.graphs.call_key import Call
from graphopt.run.model.loss_module import StepModule
from graphopt.run.model.short_step import ShortStep

logger = logging.getLogger("graphopt")

#: Layers that stay of a run of alike ones: in two everything must be seen to be the same. What all of them read has a
#: gradient that is added up from the second layer on, and in place from the third on, so that the first ones of the
#: backward are others.
KEPT = (3, 4, 5)


def shortened(step: StepModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[ShortStep]:
    """Shorter steps that stand for this one of a model on the meta device, the shortest first; none where it has none.

    Raises NotAlike where layers that look alike are not: each is run on the meta device, as the whole one is once, and
    each op of the whole one must be that of the shorter one with its layers repeated.
    """
    if stand_in(step.users_own, min(KEPT)) is None:
        return
    whole, why = list(spelled(_run_in_eager(step, step, (args, kwargs), ()))), NotAlike("there are few of them")
    is_found = False
    for kept in KEPT:
        found = stand_in(step.users_own, kept)
        if found is None:
            break
        short = ShortStep(found.model, step.loss_fn, step, partial(_extended, found.left))
        try:
            few = _run_in_eager(short, step, (args, kwargs), places_of(found.model, found.left))
            for name, left in found.left.items():
                few = extend(few, name, left).sequence
        except NotAlike as error:
            why = error
            continue
        if list(spelled(few)) != whole:
            why = NotAlike("with some of its layers the model does not do what it does with all")
            continue
        is_found = True
        layers = ", ".join(f"{each.count} of the layers of {name}" for name, each in found.left.items())
        logger.info("captured without %s, which do as the others do", layers)
        yield short
    if not is_found:
        raise why


def _run_in_eager(
    module: StepModule, whole: StepModule, call: Call, places: Iterable[tuple[torch.Tensor, Place]]
) -> Sequence:
    """The ops of a step as eager runs it; nothing of the whole model is changed. Raises NotAlike where it fails."""
    with undone(whole, call), training_mode(module), torch.enable_grad():
        try:
            return eager_step(module, *call, places)
        except Exception as error:
            raise NotAlike(f"the step does not run on the meta device: {type(error).__name__}: {error}") from error


def _extended(left: Mapping[str, Left], graph: CapturedGraph, module: fx.GraphModule) -> CapturedGraph:
    return whole_graph(graph, names_of_inputs(module), left)
