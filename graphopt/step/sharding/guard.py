"""No module computes with rows in place of its parameters: some operators would, and be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from graphopt.base.errors import UsageError


class Guard:
    """Refuses calls of one module, and of copies of it, while its parameters are rows: `wholes` are their true shapes.

    Off while the model is captured, so that it is no part of what is.
    """

    def __init__(self, module: nn.Module, wholes: Mapping[str, torch.Size]) -> None:
        def refuse(module: nn.Module, _args: Any) -> None:
            now = module._parameters
            if any((held := now.get(name)) is not None and held.shape != shape for name, shape in wholes.items()):
                raise UsageError(
                    f"the parameters of this {type(module).__name__} are shared out over ranks by "
                    "train_step(shard=...), so that the model cannot be called by itself: call it inside of "
                    "`with step.whole_model() as model:`, on all ranks, or make it whole for good: step.unshard()"
                )

        refuse.guards_rows = True  # type: ignore[attr-defined]
        self._refuse, self._hooks = refuse, module._forward_pre_hooks
        self._registered = module.register_forward_pre_hook(refuse)

    def take_off(self) -> None:
        """Until it is put on again."""
        del self._hooks[self._registered.id]

    def put_on(self) -> None:
        """As it was."""
        self._hooks[self._registered.id] = self._refuse

    def remove(self) -> None:
        """For good."""
        self._registered.remove()


def is_guarded(model: nn.Module) -> bool:
    """Whether parameters of the model are rows."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    return any(getattr(hook, "guards_rows", False) for hook in hooks)
