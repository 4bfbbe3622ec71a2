"""Models inside of a transform of torch.func."""

from __future__ import annotations

import warnings


def say_that_transforms_are_not_planned() -> bool:
    """In a warning; True, as it was said."""
    warnings.warn(
        "graphopt: inside of a transform of torch.func (grad, vmap, jvp, ...) a model runs as it is, with no "
        "plan: torch.compile does not capture it there",
        stacklevel=4,
    )
    return True
