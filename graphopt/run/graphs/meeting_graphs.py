"""Running a graph only to go on behind it: nothing is saved for a backward, and what it writes is put back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import fx

from graphopt.base.errors import CaptureError
from graphopt.capture.numbers import examples_of
from graphopt.graph.numbers import layout_of, plain


def saving_nothing(module: fx.GraphModule) -> AbstractContextManager[Any]:
    """Inside, a graph of Dynamo's gives what it gives in training, but keeps nothing for its backward.

    Its outputs then are what code behind it expects: results, or views of one another, that may be written in place.
    """
    # transforms of torch.func refuse to run where hooks are set
    transforms = any(node.target is torch._C._autograd._saved_tensors_hooks_disable for node in module.graph.nodes)
    return nullcontext() if transforms else torch.autograd.graph.saved_tensors_hooks(_drop, _refuse)


def _drop(_tensor: torch.Tensor) -> None:
    """Keep nothing."""


def _refuse(_nothing: None) -> NoReturn:
    raise RuntimeError("the model differentiates inside of its forward")


def written_inputs(module: fx.GraphModule) -> tuple[int, ...]:
    """Positions of the inputs that a graph of Dynamo's writes in place: tracing it has counted their versions."""
    examples = [node.meta.get("example_value") for node in module.graph.find_nodes(op="placeholder")]
    return tuple(i for i, each in enumerate(examples) if isinstance(each, torch.Tensor) and each._version > 0)


def fake_inputs(module: fx.GraphModule, inputs: Sequence[Any], mode: Any) -> list[Any]:
    """The inputs of a graph of Dynamo's without their memory, as they are before it runs.

    Those that Dynamo has traced with are as they are behind it: what is written into them may need a gradient.
    To be called while Dynamo compiles the graph, as `fix_sizes`.
    """
    examples = examples_of(module)
    for position in written_inputs(module):
        for size in layout_of(examples[position]):
            plain(size)  # guarded: what is made here has the sizes of this call
        examples[position] = mode.from_tensor(inputs[position], static_shapes=True)
    return examples


@dataclass(eq=False)
class WrittenInputs:
    """What graphs write in place while a call runs that may have to begin anew: copies in host memory, to put back."""

    _before: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def keep(self, tensors: Sequence[torch.Tensor]) -> None:
        """Copy these before they are written. What the call made itself is made again, and needs no copy."""
        self._before += [(t, t.detach().to("cpu", copy=True)) for t in tensors if t.grad_fn is None]

    def put_back(self) -> None:
        """Undo all that was written, the last first."""
        with torch.no_grad():
            for tensor, before in reversed(self._before):
                if tensor.grad_fn is not None:  # what was written into it has a gradient
                    (tensor._base if tensor._is_view() else tensor).detach_()  # type: ignore[union-attr]
                tensor.copy_(before)
        self.forget()

    def forget(self) -> None:
        """The call has ended: nothing is to be put back, and nothing is held for it."""
        self._before.clear()


#: In errors of a model that asks for gradients where nothing is kept for any: autograd's and ours.
_DIFFERENTIATES = ("require grad", "requires_grad", "differentiates inside of its forward")


def refuse_to_differentiate(error: RuntimeError) -> None:
    """Raise CaptureError where a model asked for gradients while nothing was kept for any: that error is ours."""
    if any(words in str(error) for words in _DIFFERENTIATES):
        raise CaptureError(
            "the model breaks into several graphs, and could not be run once to meet them: "
            f"{type(error).__name__}: {error}. A model that differentiates inside of its forward (autograd.grad, "
            "backward) cannot be planned, as graphopt does no second derivatives"
        ) from error
