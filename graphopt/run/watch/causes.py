"""Why a training step took more than its budget, and what to say of it."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.base.units import format_bytes
from graphopt.run.watch.measured_step import MeasuredStep, Place, StepInProgress

UPDATE, SEVERAL, TANGENTS, SCATTER = "update", "several forwards", "other outputs", "scattered gradients"
UNPLANNED, WHOLE = "unplanned", "measured as a whole"
LOSS = "loss"
RAISED = "kept by an error that is handled"
STATE, HELD, FRONT = "optimizer state", "held outputs", "kept in front of the model"
MESSAGES, GRADIENTS = "FSDP2 messages of other blocks", "FSDP2 gradients that stay"
#: Causes that room for other bytes does not mend.
ONLY_TOLD = (UPDATE, SEVERAL, TANGENTS, SCATTER, UNPLANNED, WHOLE)
#: Causes that stay as they are from step to step.
LASTING = (STATE, HELD, FRONT, MESSAGES, GRADIENTS)


def above_plan(place: Place) -> str:
    """The kind of what has no other name."""
    return f"measured above the plan, {place.value}"


#: The kind of what was taken in a planned graph, beside what the plan says of it.
IN_GRAPHS = above_plan(Place.GRAPHS)


def cause_of(
    measured: MeasuredStep,
    step: StepInProgress,
    excess_bytes: int,
    counted: Mapping[str, int],
    sharding: Mapping[str, int],
    plans_loss: bool,
) -> tuple[str, str]:
    """The kind of the cause, and what to say of it.

    `counted` has the bytes that earlier steps made a plan count, `sharding` those that FSDP2 held, both by kind.
    `plans_loss` tells whether a plan can have a loss in it.
    """
    if step.is_unplanned:
        return UNPLANNED, (
            "No planned graph ran in it: torch.compile gave up what was called. model.graphopt.report says where and "
            "why."
        )
    if measured.place is Place.UPDATE:
        return _of_place(measured.place, plans_loss)
    if step.has_other_tangents:
        return TANGENTS, (
            "Gradients came of other outputs of the model than the plan expects: from the next call on these are "
            "planned."
        )
    if step.is_unexpected:
        return SEVERAL, (
            "The model was called again before the backward of its first call, for the first time: from now on such "
            "calls are planned together."
        )
    # what is little of an excess in a planned graph is not its cause
    least_bytes = excess_bytes // 2 if measured.place is Place.GRAPHS else 0
    if step.front_bytes - counted.get(FRONT, 0) > least_bytes:
        return FRONT, (
            f"{format_bytes(step.front_bytes)} are kept for the backward of what made the model's inputs: optimize one "
            "module that holds both, and both are planned."
        )
    if step.raised_bytes - counted.get(RAISED, 0) > least_bytes:
        return RAISED, (
            f"{format_bytes(step.raised_bytes)} of a forward that raised an error are held by its traceback, as the "
            "model is called again where that is handled: call it behind the `except` block."
        )
    if measured.held_bytes - counted.get(HELD, 0) > least_bytes:
        return HELD, (
            f"When the step began, {format_bytes(measured.held_bytes)} of what the model had returned before were "
            "still held: `del` outputs, or detach what is kept of them."
        )
    return _of_sharding(measured, step, counted, sharding) or _of_place(measured.place, plans_loss)


def _of_sharding(
    measured: MeasuredStep, step: StepInProgress, counted: Mapping[str, int], sharding: Mapping[str, int]
) -> tuple[str, str] | None:
    if sharding.get(GRADIENTS, 0) > counted.get(GRADIENTS, 0):
        return GRADIENTS, (
            f"{format_bytes(sharding[GRADIENTS])} of gradients of earlier backwards were there: optimizer.zero_grad() "
            "gives them back, where they are not to be added to."
        )
    if measured.place is Place.GRAPHS and sharding.get(MESSAGES, 0) > counted.get(MESSAGES, 0):
        kinds = " and ".join(f"{format_bytes(size)} of {kind}" for kind, size in step.messages.items() if size)
        return MESSAGES, f"FSDP2 held {kinds} meanwhile, {format_bytes(sharding[MESSAGES])} more than was planned."
    return None


def _of_place(place: Place, plans_loss: bool) -> tuple[str, str]:
    if place is Place.UPDATE:
        return UPDATE, "No plan of the model changes that; foreach=False or fused=True may."
    if place is Place.WHOLE:
        return WHOLE, (
            "It began like those before it, and was measured as a whole: the next one is measured place by place, and "
            "what comes again in it is planned for."
        )
    if place is Place.SCATTER:
        return SCATTER, "That is FSDP2's reduce-scatter: no plan of the model changes it, smaller blocks do."
    if place is Place.LOSS and plans_loss:
        return LOSS, "A loss inside of the model, as its forward's result, would be planned with it."
    in_pieces = "" if plans_loss else ": what runs between the pieces of the model is in none of them"
    return above_plan(place), f"No plan counts that much{in_pieces}."
