"""Optimized against eager: one step of each from the same state and seed, compared bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphopt.base.errors import UsageError
from graphopt.device.snapshot import training_mode, undone
from graphopt.device.storages import tensors_in
from graphopt.graph.nodes import own_name

# Where capture itself changes the model's code (it asks whether it is being compiled), results
# differ before we touch them; relative to the tensor's largest element.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 3e-2,
    torch.float16: 5e-3,
    torch.complex128: 1e-9,
    torch.complex64: 1e-4,
    torch.complex32: 5e-3,
}


@dataclass(frozen=True)
class RecordedStep:
    """Everything that one forward and backward leaves behind, copied, by name."""

    tensors: Mapping[str, torch.Tensor]

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Those of floats and complex numbers."""
        return {tensor.dtype for tensor in self.tensors.values()} & TOLERANCE.keys()


@dataclass(frozen=True)
class Difference:
    """A tensor that two steps disagree on; differences are absolute, `relative` to its largest element."""

    tensor: str
    largest: float
    relative: float
    dtype: torch.dtype | None

    @property
    def tolerable(self) -> bool:
        """Within what a model whose code changes under capture may differ by."""
        return self.dtype in TOLERANCE and self.relative <= TOLERANCE[self.dtype]


def run_step(
    model: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> RecordedStep:
    """One training step through `call`; the model, its gradients and the generators are put back after.

    Copied are the loss, the outputs, every gradient (of inputs too), every buffer and the generators.
    """
    kept = {name: p.grad for name, p in model.named_parameters()}
    with undone(model, (args, kwargs)):
        try:
            model.zero_grad(set_to_none=True)
            inputs = pytree.tree_map(_own_input, (args, dict(kwargs)))
            with training_mode(model), torch.enable_grad():
                output = call(*inputs[0], **inputs[1])
                loss = loss_of(output)
                loss.backward()
            return RecordedStep(_collect(model, inputs, output, loss))
        finally:
            for name, parameter in model.named_parameters():
                parameter.grad = kept[name]


def loss_of(output: Any) -> torch.Tensor:
    """What is differentiated: the output itself, the first of a tuple, its `.loss`, or a fixed mixture of tensors."""
    first = output[0] if isinstance(output, (tuple, list)) and output else None
    if isinstance(first, torch.Tensor) and first.ndim == 0 and first.requires_grad:
        return first
    if isinstance(output, torch.Tensor) and output.ndim == 0:
        return output
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(loss, torch.Tensor) and loss.ndim == 0:
        return loss
    leaves = [leaf for leaf in tensors_in(output) if leaf.is_floating_point() and leaf.requires_grad]
    if not leaves:
        raise UsageError(
            f"the model returned {type(output).__name__}, in which no tensor needs a gradient: nothing to train"
        )
    return torch.stack([(leaf.float() * _weights(leaf)).sum() for leaf in leaves]).sum()


def differences(one: RecordedStep, other: RecordedStep) -> list[Difference]:
    """Where two steps are not equal bit by bit, in the order of the step."""
    found = []
    for name in dict.fromkeys((*one.tensors, *other.tensors)):
        a, b = one.tensors.get(name), other.tensors.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            found.append(Difference(name, float("inf"), float("inf"), None))
        elif not same_bits(a, b):
            found.append(_difference(name, a, b))
    return found


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit by bit: NaNs compare by their bits, and 0.0 is not -0.0."""
    if a.numel() == 0:
        return True
    return torch.equal(_bits(a), _bits(b))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.contiguous().reshape(-1).view(torch.uint8)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest absolute difference of two tensors of numbers; equal infinities and two NaNs do not differ."""
    one, other = _widest(a), _widest(b)
    equal = (one == other) | (one.isnan() & other.isnan())
    gap = (one - other).abs().masked_fill(equal, 0.0)
    most = gap.max().item() if gap.numel() else 0.0
    return float("inf") if most != most else most


def largest(tensor: torch.Tensor) -> float:
    """The largest absolute element that is finite, 0 where there is none."""
    sizes = _widest(tensor).abs()
    return sizes[sizes.isfinite()].max().item() if sizes.isfinite().any() else 0.0


def _widest(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _difference(name: str, a: torch.Tensor, b: torch.Tensor) -> Difference:
    if a.dtype not in TOLERANCE:
        return Difference(name, float("inf"), float("inf"), a.dtype)
    gap = distance(a, b)
    return Difference(name, gap, gap / max(largest(a), 1e-300) if gap else 0.0, a.dtype)


def _own_input(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor) and leaf.requires_grad and leaf.is_leaf:
        return leaf.detach().clone().requires_grad_()
    return leaf


def _collect(model: nn.Module, inputs: Any, output: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {"loss": loss}
    found.update({f"output {i}": tensor for i, tensor in enumerate(tensors_in(output))})
    found.update({f"gradient of {own_name(n)}": p.grad for n, p in model.named_parameters() if p.grad is not None})
    leaves = enumerate(tensors_in(inputs))
    found.update({f"gradient of input {i}": leaf.grad for i, leaf in leaves if leaf.grad is not None})
    found.update({f"buffer {own_name(name)}": buffer for name, buffer in model.named_buffers()})
    found["CPU generator"] = torch.get_rng_state()
    if torch.cuda.is_available():
        found.update({f"CUDA generator {i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())})
    # In host memory: on the device they would take room that the budget has for the next step.
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in found.items()}


def _weights(leaf: torch.Tensor) -> torch.Tensor:
    """Fixed and uneven, so that no two elements' gradients can be exchanged unseen."""
    return torch.arange(leaf.numel(), device=leaf.device, dtype=torch.float32).reshape(leaf.shape).sin()
