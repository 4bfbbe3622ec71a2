"""No module computes with rows in place of its parameters: some operators would, and be wrong."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from graphopt.base.errors import UsageError
from graphopt.device.ranks import Ranks


class MayBeWhole(Protocol):
    """Parameters that are shared out over ranks, and at times whole."""

    is_whole: bool
    ranks: Ranks


class Guard:
    """Refuses calls of one module while its parameters are rows.

    Off while the model is captured, so that it is no part of what is.
    """

    def __init__(self, module: nn.Module, sharded: MayBeWhole) -> None:
        def refuse(module: nn.Module, _args: Any) -> None:
            if not sharded.is_whole:
                raise UsageError(
                    f"the parameters of this {type(module).__name__} are shared out over {sharded.ranks.world} ranks "
                    "by train_step(shard=...), so that the model cannot be called by itself: call it inside of "
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
