"""A step of which alike layers are captured a few times: shown to do as the whole one does, before it is captured."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

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


def shortened(step: StepModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ShortStep | None:
    """A shorter step that stands for this one of a model on the meta device; None where no layers are alike.

    Raises NotAlike where layers that look alike are not: both steps are run on the meta device, and each op of the
    whole one must be that of the shorter one with its layers repeated.
    """
    found = stand_in(step.users_own)
    if found is None:
        return None
    short = ShortStep(found.model, step.loss_fn, step, partial(_extended, found.left))
    with undone(step, (args, kwargs)), training_mode(step), training_mode(short):
        try:
            _check_steps(step, short, found, args, kwargs)
        except NotAlike:
            raise
        except Exception as error:
            raise NotAlike(f"the step does not run on the meta device: {type(error).__name__}: {error}") from error
    layers = ", ".join(f"{each.count} of the layers of {name}" for name, each in found.left.items())
    logger.info("captured without %s, which do as the others do", layers)
    return short


def _check_steps(
    whole: StepModule, short: ShortStep, found: StandIn, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    few = eager_step(short, args, kwargs, places_of(found.model, found.left))
    for name, left in found.left.items():
        few = extend(few, name, left).sequence
    all_layers = eager_step(whole, args, kwargs, ())
    if list(spelled(few)) != list(spelled(all_layers)):
        raise NotAlike("with some layers the model does not do what it does with all")


def _extended(left: Mapping[str, Left], graph: CapturedGraph, module: fx.GraphModule) -> CapturedGraph:
    return whole_graph(graph, names_of_inputs(module), left)
