"""A step of which alike layers are captured a few times: shown to do as the whole one does, before it is captured."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import fx

from graphopt.capture.repeated.eager_steps import eager_step
from graphopt.capture.repeated.extend import extend
from graphopt.capture.repeated.periods import NotAlike
from graphopt.capture.repeated.sequence import spelled
from graphopt.capture.repeated.stand_in import Left, StandIn, places_of, stand_in
from graphopt.capture.repeated.whole_graph import names_of_inputs, whole_graph
from graphopt.device.snapshot import training_mode, undone
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.run.model.loss_module import StepModule
from graphopt.run.model.short_step import ShortStep

logger = logging.getLogger("graphopt")

#: Layers that stay of a run of alike ones: in two everything must be seen to be the same. What all of them read has a
#: gradient that is added up from the second layer on, and in place from the third on, so that the first ones of the
#: backward are others.
KEPT = (3, 4, 5)


def shortened(step: StepModule, args: tuple[Any, ...], kwargs: Mapping[str, Any], least: int) -> ShortStep | None:
    """A shorter step that stands for this one of a model on the meta device; None where no layers are alike.

    It has `least` of the alike layers, or a few more. Raises NotAlike where layers that look alike are not: both steps
    are run on the meta device, and each op of the whole one must be that of the shorter one with its layers repeated.
    """
    if stand_in(step.users_own, min(KEPT)) is None:
        return None
    with undone(step, (args, kwargs)), training_mode(step), torch.enable_grad():
        try:
            found, short = _found(step, args, kwargs, least)
        except NotAlike:
            raise
        except Exception as error:
            raise NotAlike(f"the step does not run on the meta device: {type(error).__name__}: {error}") from error
    layers = ", ".join(f"{each.count} of the layers of {name}" for name, each in found.left.items())
    logger.info("captured without %s, which do as the others do", layers)
    return short


def _found(step: StepModule, args: tuple[Any, ...], kwargs: Mapping[str, Any], least: int) -> tuple[StandIn, ShortStep]:
    """The shortest step that does what the whole one does; raises NotAlike."""
    whole, why = list(spelled(eager_step(step, args, kwargs, ()))), NotAlike("there are few of them")
    for kept in (each for each in KEPT if each >= least):
        found = stand_in(step.users_own, kept)
        if found is None:
            break
        short = ShortStep(found.model, step.loss_fn, step, partial(_extended, found.left), kept)
        with training_mode(short):
            few = eager_step(short, args, kwargs, places_of(found.model, found.left))
        try:
            for name, left in found.left.items():
                few = extend(few, name, left).sequence
        except NotAlike as error:
            why = error
            continue
        if list(spelled(few)) == whole:
            return found, short
        why = NotAlike("with some of its layers the model does not do what it does with all")
    raise why


def _extended(left: Mapping[str, Left], graph: CapturedGraph, module: fx.GraphModule) -> CapturedGraph:
    return whole_graph(graph, names_of_inputs(module), left)
