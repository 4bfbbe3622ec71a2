"""Models that are differentiated in other ways than by a backward: inside of torch.func, and by forward-mode AD."""

from __future__ import annotations

import warnings

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a call that is made now is inside of a transform of torch.func, or of a level of forward-mode AD."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def say_that_transforms_are_not_planned() -> bool:
    """In a warning; True, as it was said."""
    warnings.warn(
        "graphopt: inside of a transform of torch.func (grad, vmap, jvp, ...) or of forward-mode AD a model runs as it "
        "is, with no plan: torch.compile does not capture it there",
        stacklevel=4,
    )
    return True
