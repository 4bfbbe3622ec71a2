"""What a model's step takes at sizes of its inputs that have names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import sympy
import torch

from graphopt.base.errors import CaptureError, UsageError
from graphopt.capture.changing_sizes import Dynamic, Sizes, input_name, sizes_of
from graphopt.capture.names_of_sizes import name_of, names_of_symbols
from graphopt.cost_models.polynomials import Form, Ranges, size_symbol
from graphopt.cost_models.symbolic import rounded
from graphopt.device.storages import same_device, storage_key, tensors_in
from graphopt.plan.by_size import BySize
from graphopt.plan.graph_forms import GraphForms
from graphopt.problem.schedule import Schedule
from graphopt.report.formula import Formula, formula_lines
from graphopt.report.grid import GridPoint
from graphopt.run.calls.call_plan import CallPlan
from graphopt.run.model.loss_module import as_call

#: The formula is shown for sizes from the example's over this to the example's times this.
_AROUND = 8


class SizedEstimate(BySize):
    """The closed forms of a model, with what is resident by kind."""

    def __init__(self, graph: GraphForms, resident_bytes: Mapping[str, int], inputs: Form) -> None:
        self._resident_bytes, self._inputs = resident_bytes, inputs
        beside = sum(size for kind, size in resident_bytes.items() if kind != "inputs")
        super().__init__(graph, Form.of(beside) + inputs)

    @cached_property
    def formula(self) -> Formula:
        """The closed forms, and lines that show them around the sizes of the example."""
        return self.formula_in(self.around)

    @property
    def around(self) -> Ranges:
        """Sizes around those of the example."""
        graph = self.graph
        return {
            name: (max(size // _AROUND, graph.ranges[name][0]), min(size * _AROUND, graph.ranges[name][1]))
            for name, size in graph.sizes.items()
        }

    def formula_up_to(self, ranges: Ranges) -> Formula:
        """As `formula`, shown in these ranges; the minimum is of the schedule that takes least at the largest sizes."""
        largest = {name: high for name, (_, high) in ranges.items()}
        return self.formula_in(ranges, least_at=None if self.graph.refusal(largest) else largest)

    def formula_in(
        self, ranges: Ranges, chosen: Schedule | None = None, least_at: Mapping[str, int] | None = None
    ) -> Formula:
        """The closed forms, and lines that show them in these ranges; `chosen` is a plan's schedule.

        The minimum is of the schedule that takes least at `least_at`, the example's sizes where that is None.
        """
        graph = self.graph
        peaks = {"eager": self.eager, "minimum": self.minimum_at(least_at) if least_at else self.minimum}
        if chosen is not None:
            peaks["chosen"] = graph.peak(chosen) + self.resident
        parameters, optimizer = (Form.of(self._resident_bytes.get(kind, 0)) for kind in ("parameters", "optimizer"))
        gradients = graph.of_kind("gradients")
        kinds = {"parameters": parameters, "gradients": gradients, "optimizer": optimizer, "inputs": self._inputs}
        return Formula(
            **{name: form.expression for name, form in (*peaks.items(), *kinds.items())},
            flops=graph.flops.expression,
            sizes=dict(graph.sizes),
            shown=formula_lines(peaks, kinds, graph.flops, ranges, least_at or graph.sizes),
        )

    def point(self, sizes: Mapping[str, int], budget_bytes: int | None) -> GridPoint:
        """Peaks at these sizes, and the price in the budget."""
        complete = self.complete(sizes)
        within = None if budget_bytes is None else self.within(budget_bytes, complete)
        least = self.minimum_bytes(complete) if within is None else self.least_known_bytes(complete)
        return GridPoint(tuple(sizes.values()), self.eager_bytes(complete), least, within.overhead if within else None)

    def complete(self, sizes: Mapping[str, int], asked: str | None = None) -> dict[str, int]:
        """The sizes, with those of the example where none are given; `asked` is what is looked for.

        Raises UsageError for a name that there is not, for what is no size, and for sizes that the capture does not
        serve.
        """
        known = self.graph.sizes
        for name in (*sizes, *([asked] if asked else [])):
            if name not in known:
                raise UsageError(f"there is no size {name!r} here; there are: {', '.join(known)}")
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise UsageError(f"{name}: expected a whole number, 1 or more, got {size!r}")
        complete = {**known, **sizes}
        why = "" if asked else self.graph.refusal(complete)
        if why:
            raise UsageError(f"{why}; give estimate() an example of such sizes")
        return complete


def planned_formula(call: CallPlan, example_inputs: Any, dynamic: Dynamic) -> Formula:
    """The closed forms of a plan, its own peak among them; raises as `sized`."""
    forms = sized(call, example_inputs, dynamic)
    return forms.formula_in(forms.around, call.planned[0].schedule)


def sized(call: CallPlan, example_inputs: Any, dynamic: Dynamic) -> SizedEstimate:
    """The closed forms of a call that was captured with these sizes as symbols.

    Raises CaptureError where the model is not one graph, or a named size is a constant of it.
    """
    if len(call.planned) > 1:
        raise CaptureError(
            f"the model breaks into {len(call.planned)} graphs, and formulas are of one; estimate() without dynamic "
            "has the curve of all of them"
        )
    (planned,) = call.planned
    sizes = sizes_of(dynamic)
    names = names_of_symbols(planned.captured.step, sizes)
    graph = GraphForms(planned.study, planned.choice, names)
    inputs = _bytes_of_inputs(example_inputs, planned.captured.step.device, sizes, set(graph.sizes))
    return SizedEstimate(graph, call.resident_bytes, inputs)


def _bytes_of_inputs(inputs: Any, device: torch.device, sizes: Sizes, named: set[str]) -> Form:
    """The bytes of the inputs' storages, each once, with names in place of the sizes of dimensions."""
    args, kwargs = as_call(inputs, None)
    given = [(input_name(place), value) for place, value in enumerate(args)]
    given += [(input_name(keyword), value) for keyword, value in kwargs.items()]
    found: dict[int, sympy.Expr] = {}
    for name, value in given:
        for tensor in tensors_in(value):
            if same_device(tensor, device):
                found.setdefault(storage_key(tensor), rounded(_bytes_of_input(tensor, name, sizes, named), device))
    return Form.of(sympy.Add(*found.values()))


def _bytes_of_input(tensor: torch.Tensor, of: str, sizes: Sizes, named: set[str]) -> sympy.Expr:
    now, elements = tensor.itemsize, sympy.Integer(tensor.itemsize)
    for dimension, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        name = name_of(sizes, f"{of}.size({dimension})", dimension)
        if step:  # an expanded dimension takes no bytes
            now *= size
            elements *= size_symbol(name) if name in named and size > 1 else size
    # what else its storage holds stays as it is
    return elements + max(tensor.untyped_storage().nbytes() - now, 0)
