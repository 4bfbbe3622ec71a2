"""Calls of a model that torch.compile does not capture: inside of torch.func, forward-mode AD, or a checkpoint."""

from __future__ import annotations

import warnings

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a call that is made now is inside of one of these.

    A checkpoint around the model, and whatever else looks at each tensor that autograd saves, is told of tensors that
    eager saves, and in its second run of as many.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return True
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def say_that_transforms_are_not_planned() -> bool:
    """In a warning; True, as it was said."""
    warnings.warn(
        "graphopt: inside of a transform of torch.func (grad, vmap, jvp, ...), of forward-mode AD, or of hooks for "
        "saved tensors (torch.utils.checkpoint around the model) a model runs as it is, with no plan",
        stacklevel=4,
    )
    return True
