"""A step's part in the training of several processes: how gradients travel, and what is kept back of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from graphopt.base.errors import UsageError
from graphopt.compression.bucket import Shape
from graphopt.compression.choose import Auto
from graphopt.compression.measured_choice import choose_methods
from graphopt.compression.methods import DGC, Compression
from graphopt.compression.protocols import at_step, state_shapes
from graphopt.compression.residuals import initial_state, of_each_rank, own_state
from graphopt.compression.rows import ByRows
from graphopt.compression.spelling import method_from_spelled, spelled
from graphopt.device.ranks import Ranks
from graphopt.graph.joint import JointGraph
from graphopt.graph.roles import DESCRIPTOR, Draw, Kept, Overflow
from graphopt.passes.joint import Passes, send_sums
from graphopt.passes.joint.buckets import COMPRESSED_BYTES
from graphopt.passes.joint.compress import in_order_of_readiness
from graphopt.passes.joint.sharding.how import CompressedRows
from graphopt.step.micro_batches.micro_graph import MicroCall
from graphopt.step.optimizer.optimizer_view import OptimizerView
from graphopt.step.sharding.share_out import Shared
from graphopt.step.tensor_parallel.placement import TensorParallel
from graphopt.step.tensor_parallel.start import check_wholes_agree

Methods = Mapping[str, Compression | None]


class Exchange:
    """How a step's gradients go to the other ranks.

    `methods` are by parameter; with `Auto` they are chosen when the backward is known. `steps` counts those
    that were taken, skipped ones too; `kept` is what methods keep, by parameter and key. With `shared` gradients are
    scattered, as rows of them are shared out over ranks: what is kept of one is as large as the whole parameter, and
    has a second tensor, `pending`, for what a step keeps back before the ranks have agreed. With `parallel` all `ranks`
    agree, and gradients are summed over those alone that hold the same shards.
    """

    def __init__(
        self,
        ranks: Ranks,
        view: OptimizerView,
        how: Compression | Auto | None,
        *,
        scaled: bool,
        shared: Shared | None = None,
        parallel: TensorParallel | None = None,
    ) -> None:
        _check_momentum(how, view)
        self.ranks, self.view, self.scaled = ranks, view, scaled
        self.auto = how if isinstance(how, Auto) else None
        self.chooses = self.auto is not None
        self.shared, self.parallel = shared, parallel
        self.shapes: Mapping[str, Shape] = {name: tuple(p.shape) for name, p in view.parameters.items()}
        if shared is not None:
            self.shapes = {name: tuple(shape) for name, shape in shared.shapes.items()}
        method = None if isinstance(how, Auto) else how
        self.methods: Methods = {name: method if self._may(p) else None for name, p in view.parameters.items()}
        self.pending: dict[str, torch.Tensor] = {}
        self.reasons: tuple[str, ...] = ()
        self.steps = 0
        self._checked_steps = -1
        self.kept: dict[str, dict[str, torch.Tensor]] = {}
        self.overflow: torch.Tensor | None = None

    @property
    def summing(self) -> Ranks | None:
        """Those over which gradients are summed; None where there is no other."""
        return self.parallel.copies if self.parallel is not None else self.ranks

    @property
    def summing_name(self) -> str | None:
        """What functional collectives call the group of `summing`."""
        return self.summing.name if self.summing is not None else None

    def shares(self, weights: Sequence[float]) -> float:
        """What the global batch weighs: the batches that ranks give to the copies of the model, one for each copy.

        Raises UsageError, on all ranks, where those that hold shards of one copy were given batches of other weights.
        """
        if self.parallel is None:
            return sum(weights)
        for group in self.parallel.groups:
            if len({weights[rank] for rank in group}) > 1:
                raise UsageError(
                    f"ranks {', '.join(map(str, group))} hold shards of one model, and their batches weigh "
                    f"{', '.join(f'{weights[rank]:g}' for rank in group)}: give all of them the same batch"
                )
        return sum(weights[rank] for rank in self.parallel.copies_of_this)

    def check_wholes(self) -> None:
        """Before the first step, and now and then, raise UsageError where copies on ranks drift apart; collective."""
        is_due = self.steps & (self.steps - 1) == 0 and self.steps != self._checked_steps
        if self.parallel is not None and self.parallel.shards is not None and is_due:
            self._checked_steps = self.steps
            check_wholes_agree(self.ranks, self.view.parameters, self.parallel, self.steps)

    def choose(self, call: MicroCall) -> None:
        """Let "auto" choose for the gradients of a captured micro-batch; a collective call."""
        assert self.auto is not None
        step, problem = call.micro.graph.captured.step, call.micro.graph.captured.problem
        ready = in_order_of_readiness(step.graph_module.graph)
        buckets = _buckets(ready)
        backward_seconds = sum(op.seconds for op in problem.ops[step.boundary :])
        choice = choose_methods(self.ranks, self.auto, [[s for _, s in some] for some in buckets], backward_seconds)
        names = {index: self.view.names[id(call.flat[index])] for index, _ in ready}
        chosen = {names[i]: how for some, how in zip(buckets, choice.methods, strict=True) for i, _ in some}
        parameters = self.view.parameters
        self.methods = {name: chosen.get(name) if _is_single(p) else None for name, p in parameters.items()}
        self.auto, self.reasons = None, choice.reasons

    @property
    def kind(self) -> object:
        """Equal for steps that one graph serves."""
        return tuple(self._now().items())

    def passes(self, joint: JointGraph, trained: Mapping[int, Any]) -> Passes:
        """What sends the sums of the joint graph's primals at these positions to the other ranks."""
        now, primals = self._now(), joint.primals
        methods = {primals[i].meta[DESCRIPTOR].idx: now[self.view.names[id(item)]] for i, item in trained.items()}
        assert self.summing is not None
        return send_sums(self.summing, methods, scaled=self.scaled)

    def by_rows(self, joint: JointGraph, trained: Mapping[int, Any]) -> CompressedRows | None:
        """How gradients of the joint graph's primals are scattered; None where all go as they are."""
        assert self.shared is not None
        methods = {at: self.methods[self.view.names[id(item)]] for at, item in trained.items()}
        if not joint.gradients or not any(methods.values()):
            return None
        by_rows = {at: method for at, method in methods.items() if isinstance(method, ByRows)}
        placed = self.shared.placed
        return CompressedRows(by_rows, self.scaled, placed.copies.world if placed.copies else 1)

    @property
    def commits(self) -> bool:
        """Whether the ranks agree at a step's end, and not in its last micro-batch."""
        return self.shared is not None and any(self.methods.values())

    def kept_bytes(self, names: Iterable[str]) -> int:
        """Bytes of what is kept for these parameters."""
        shapes = (shape for name in names for shape in state_shapes(self.methods[name], self.shapes[name]).values())
        return sum(4 * torch.Size(shape).numel() for shape in shapes) * (2 if self.shared is not None else 1)

    def kept_of(self, name: str, key: str) -> torch.Tensor:
        """One tensor that is kept; made where there is none."""
        parameter = self.view.parameters[name].detach()
        if self.shared is not None and parameter.shape != self.shapes[name]:
            parameter = parameter.new_empty(self.shapes[name])
        if key == "pending":
            if name not in self.pending:
                self.pending[name] = torch.zeros_like(parameter, dtype=torch.float32)
            return self.pending[name]
        held = self.kept.setdefault(name, {})
        if key not in held:
            held.update(initial_state(self.methods[name], name, parameter))
        return held[key]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that is kept."""
        return [*(tensor for held in self.kept.values() for tensor in held.values()), *self.pending.values()]

    def sources(self, device: torch.device) -> dict[type, Callable[[Any], Any]]:
        """What goes into a window's inputs, by role."""
        if self.overflow is None:
            self.overflow = torch.zeros((), device=device)
        return {
            Kept: lambda role: self.kept_of(role.parameter, role.key),
            Overflow: lambda _: self.overflow,
            Draw: lambda _: self.steps,
        }

    def state_dict(self) -> dict[str, Any]:
        """Steps taken, how each parameter's gradient travels, and what is kept of it by key: this rank's own."""
        return {
            "rank": self.ranks.rank,
            "world": self.ranks.world,
            "steps": self.steps,
            "methods": {name: spelled(method) for name, method in self.methods.items()},
            "state": {name: {**held} for name, held in self.kept.items()},
        }

    def load_state_dict(self, saved: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Go on from this rank's own `state_dict()`, or, with another number of ranks, from all ranks' of then.

        With "auto" the methods that it had chosen then stay. Raises UsageError where it was saved with other methods,
        or for another model.
        """
        first = of_each_rank(saved)[0]
        methods = {name: method_from_spelled(data) for name, data in first["methods"].items()}
        if set(methods) != set(self.methods) or not (self.chooses or methods == self.methods):
            raise UsageError("the saved state was compressed in other ways, or is another model's")
        mine = own_state(saved, self.ranks, self.shapes, lambda name: (methods.get(name),))
        self.steps, self.methods, self.auto = first["steps"], methods, None
        # what is not in a state of before the first step begins anew
        self.kept.clear()
        with torch.no_grad():
            for name, held in mine.items():
                for key, tensor in held.items():
                    self.kept_of(name, key).copy_(tensor)

    def lines(self) -> tuple[str, ...]:
        """What a report says of it."""
        held = Counter(str(method) if method else "none" for method in self.methods.values())
        return (*self.reasons, *(f"compression {method}: {count} parameters" for method, count in held.items()))

    def _may(self, parameter: torch.Tensor) -> bool:
        """Whether methods may compress its gradient: what is summed up, or scattered, is float32."""
        return parameter.dtype == torch.float32 if self.shared is not None else _is_single(parameter)

    def _now(self) -> Methods:
        return {name: at_step(method, self.steps) for name, method in self.methods.items()}


def _is_single(parameter: torch.Tensor) -> bool:
    """Whether gradients are summed up in float32, which is what methods compress."""
    return torch.promote_types(parameter.dtype, torch.float32) == torch.float32


def _buckets(ready: Sequence[tuple[int, Shape]]) -> list[list[tuple[int, Shape]]]:
    """As many gradients in each as a compressed message stands for."""
    found: list[list[tuple[int, Shape]]] = [[]]
    for item in ready:
        if sum(4 * math.prod(shape) for _, shape in found[-1]) >= COMPRESSED_BYTES:
            found.append([])
        found[-1].append(item)
    return found


def _check_momentum(how: Compression | Auto | None, view: OptimizerView) -> None:
    if not isinstance(how, DGC):
        return
    if not all(_is_single(parameter) for parameter in view.parameters.values()):
        raise UsageError("compress=DGC(...) sums gradients up in float32: it is not for float64 parameters")
    momenta = [group.get("momentum", 0) for group in view.optimizer.param_groups]
    if any(momenta):
        raise UsageError(
            f"compress=DGC(...) has the momentum on each rank, before gradients are sent: give {max(momenta)} to "
            "DGC(momentum=...) and 0 to the optimizer"
        )
