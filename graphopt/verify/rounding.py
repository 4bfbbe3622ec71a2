"""Whether two steps that differ by much do so by rounding alone: a gradient that is next to nothing is all rounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from graphopt.device.storages import tensors_in
from graphopt.verify.float64 import in_float64, wide
from graphopt.verify.step_result import TOLERANCE, Difference, RecordedStep, distance, largest, run_step

#: How many times eager's own error another rounding of the same sums may be off. Errors of one element are draws from
#: one distribution: a normal one goes beyond eight times the largest of three in 1 of 630 (E[(2 Φ(x/8) - 1)^3]), and
#: the largest of many elements hardly ever. What is wrong in the third digit of float32 is beyond a thousand times it.
FACTOR = 8.0

#: Units in the last place of a tensor's largest element that what adds up in another order than eager may be off in
#: float32 and float64, where eager is nearer: compiled kernels, and sums that are made piece by piece. Eager
#: adds in a tree, Inductor's CPU kernels one by one. Seen in the zoo (November 2026): 10 units
#: in a bias's gradient over 8,192 rows (42 times eager's error), 47 in the mean that is a loss.
REORDERED_ULPS = 128

#: Elements of a tensor below which one run's error may be small by luck.
_FEW = 16
_DRAWS = 2


@dataclass(frozen=True)
class Settled:
    """What a doubt came to: the differences that are more than rounding, and what is to be said of the others."""

    wrong: tuple[Difference, ...]
    lines: tuple[str, ...]


def settle(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    eager: RecordedStep,
    found: RecordedStep,
    doubtful: Sequence[Difference],
    ulps: int = 0,
) -> Settled:
    """Judge eager and `found` by a step in float64, and tell rounding from what is wrong.

    `found` may be `FACTOR` times as far from float64 as eager is; for a tensor of few elements, as the worst of three
    steps of eager is, two of them with parameters and inputs moved by one unit in the last place, which rounds
    everything anew. Any tensor of float32 or float64 may be off by so many `ulps` of its largest element. Where float64
    does not give eager's outputs (it cannot run, or is another computation), what those two move stands in its place.
    Eager's own error must be small beside the model's largest gradient, or nothing can be told.
    """
    draws, coarsest = _eager_again(model, args, kwargs)
    exact, why_not = _exact(model, args, kwargs, eager, coarsest)
    judge = _Judge(eager, found, draws, exact, TOLERANCE[coarsest], ulps)
    wrong = tuple(gap for gap in doubtful if not judge.is_rounding(gap))
    fine = [gap for gap in doubtful if gap not in wrong]
    return Settled(wrong, (judge.said_of(fine, why_not),) if fine else ())


@dataclass(frozen=True)
class _Judge:
    eager: RecordedStep
    found: RecordedStep
    draws: Sequence[RecordedStep]
    float64: RecordedStep | None
    tolerance: float
    ulps: int

    @property
    def exact(self) -> RecordedStep:
        return self.float64 or self.eager

    def is_rounding(self, gap: Difference) -> bool:
        if gap.dtype not in TOLERANCE:
            return False
        noise = self.error_of_eager(gap.tensor)
        allowed, scale, own = FACTOR * noise, self.scale(gap.tensor), largest(self.exact.tensors[gap.tensor])
        if gap.dtype in (torch.float32, torch.float64):
            allowed = max(allowed, self.ulps * torch.finfo(gap.dtype).eps * own)
        if own <= FACTOR * noise:  # all that is there is rounding, and any will do
            allowed = max(allowed, torch.finfo(gap.dtype).eps * scale)
        return self.error(gap.tensor) <= allowed and noise <= self.tolerance * scale

    def error(self, name: str) -> float:
        return distance(self.exact.tensors[name], self.found.tensors[name])

    def error_of_eager(self, name: str) -> float:
        exact = self.exact.tensors[name]
        moved = self.draws[1:] if self.float64 is None or exact.numel() < _FEW else ()
        return max(distance(exact, step.tensors[name]) for step in (self.eager, self.draws[0], *moved))

    def scale(self, name: str) -> float:
        """Of a gradient, the largest element of all of them; of anything else, its own."""
        names = [name] if not name.startswith("gradient") else [n for n in self.eager.tensors if n[:8] == "gradient"]
        return max(largest(self.eager.tensors[n]) for n in names)

    def said_of(self, fine: Sequence[Difference], why_not: str) -> str:
        worst = max(fine, key=lambda gap: gap.relative)
        name, one = worst.tensor, len(fine) == 1
        by = f"eager's own rounding ({why_not})" if why_not else "float64"
        return (
            f"{len(fine)} {'differs' if one else 'differ'} by more than the tolerance for {'its' if one else 'their'} "
            f"size, and no more than rounding does, judged by {by}: {name} is {self.error(name):.2g} off, eager "
            f"{self.error_of_eager(name):.2g} (at most {FACTOR:g} times that is taken for rounding), beside "
            f"{self.scale(name):.2g} for the largest element"
        )


def _eager_again(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[RecordedStep], torch.dtype]:
    """Eager once more, then with its numbers moved by one ulp; and the coarsest dtype that it computes in."""
    with _Dtypes() as seen:
        steps = [run_step(model, model._call_impl, args, kwargs)]
    for seed in range(_DRAWS):
        generator = torch.Generator().manual_seed(seed)
        with _moved_parameters(model, generator):
            inputs = pytree.tree_map(lambda leaf, g=generator: _moved(leaf, g), (args, dict(kwargs)))
            steps.append(run_step(model, model._call_impl, *inputs))
    return steps, max(seen.dtypes or {torch.float32}, key=TOLERANCE.__getitem__)


def _exact(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], eager: RecordedStep, coarsest: torch.dtype
) -> tuple[RecordedStep | None, str]:
    """A step in float64, or None and why there is none that says anything of this one."""
    inputs = pytree.tree_map(_wide_input, (args, dict(kwargs)))
    try:
        with in_float64(model):
            exact = run_step(model, model._call_impl, *inputs)
    except Exception as error:  # whatever an op or the model's own code has against float64
        return None, f"in float64 the model raises {type(error).__name__}"
    if exact.tensors.keys() != eager.tensors.keys() or eager.dtypes <= {torch.float64, torch.complex128}:
        return None, "float64 says no more"
    for name, tensor in eager.tensors.items():
        if name.startswith("output") and tensor.dtype in TOLERANCE:
            off = distance(exact.tensors[name], tensor)
            if not off <= TOLERANCE[coarsest] * largest(tensor):
                return None, f"in float64 {name} is another one"
    return exact, ""


def _wide_input(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return wide(leaf.detach()).requires_grad_(leaf.requires_grad)


@contextmanager
def _moved_parameters(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    kept = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in kept:
            parameter.data = _moved(data, generator)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def _moved(leaf: Any, generator: torch.Generator) -> Any:
    """Every float one unit in the last place, or two, up or down."""
    if not isinstance(leaf, torch.Tensor) or leaf.dtype not in TOLERANCE:
        return leaf
    signs = 2.0 * torch.randint(2, leaf.shape, generator=generator).to(leaf.device) - 1
    moved = (wide(leaf.detach()) * (1 + torch.finfo(leaf.dtype).eps * signs.double())).to(leaf.dtype)
    moved = torch.empty_like(leaf).copy_(moved)
    return moved.requires_grad_(leaf.requires_grad)


class _Dtypes(TorchDispatchMode):
    """Notes what dtypes a step computes in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.dtypes |= {tensor.dtype for tensor in tensors_in(result)} & TOLERANCE.keys()
        return result
