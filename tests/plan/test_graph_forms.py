"""Closed forms of whole models: what the simulator says, at sizes that nothing was captured or measured at."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import graphopt
from graphopt.api.optimize import plan_model
from graphopt.base.units import UNLIMITED_BYTES
from graphopt.capture.changing_sizes import sizes_of
from graphopt.capture.names_of_sizes import names_of_symbols
from graphopt.cost_models.roofline import flops
from graphopt.cost_models.symbolic import symbolic_bytes
from graphopt.cost_models.symbolic_costs import symbols_at
from graphopt.graph.at_sizes import AtSizes, step_at
from graphopt.graph.step_graph import to_problem, with_storage_bytes
from graphopt.plan.generator_states import with_generator_states
from graphopt.plan.graph_forms import GraphForms
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule, simulate
from tests.support.zoo import ZOO

TOKENS, ROWS = {"batch": 0, "length": 1}, {"batch": 0}
MODELS = {"gpt2": TOKENS, "llama": TOKENS, "bert": TOKENS, "vit": ROWS, "unet": ROWS, "lstm": ROWS}
HELD_OUT = 20


@cache
def forms_of(name: str) -> GraphForms:
    case = ZOO[name]()
    inputs = case.args or case.kwargs
    optimized = plan_model(case.model, inputs, mem_budget=UNLIMITED_BYTES, dynamic=MODELS[name])
    (planned,) = optimized.planned_graphs
    names = names_of_symbols(planned.captured.step, sizes_of(MODELS[name]))
    return GraphForms(planned.study, planned.choice, names)


def held_out(forms: GraphForms) -> list[dict[str, int]]:
    """Sizes from 2 to three times those of the capture, as far as it serves them."""
    generator = np.random.default_rng(0)
    tops = {name: min(3 * size, forms.ranges[name][1]) for name, size in forms.sizes.items()}
    found = [
        {n: int(generator.integers(max(forms.ranges[n][0], 2), top + 1)) for n, top in tops.items()} for _ in range(60)
    ]
    return [sizes for sizes in found if not forms.refusal(sizes)][:HELD_OUT]


def problems_at(forms: GraphForms, sizes: dict[str, int]) -> tuple[Problem, Problem]:
    """The planner's problem at these sizes, without what ops take besides and with it: they are run for that."""
    step, at = forms.graph.step, AtSizes(symbols_at(forms.names, sizes))
    costs, now = forms.costs.at(at), step_at(step, at)
    seconds = [cost.seconds for cost in costs]
    whole = with_storage_bytes(now, [cost.storage_bytes for cost in costs])
    return to_problem(now, seconds, [0] * len(costs)), to_problem(whole, seconds, [c.workspace_bytes for c in costs])


def peak_at(forms: GraphForms, problem: Problem, schedule: Schedule) -> int:
    return int(with_generator_states(forms.graph, schedule, simulate(problem, schedule).live_bytes).max())


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", MODELS)
def test_forms_are_what_the_simulator_says(name: str) -> None:
    forms = forms_of(name)
    schedules = [*forms.schedules[::12], forms.graph.captured_schedule]
    assert len(schedules) > 3 and set(forms.sizes) == set(MODELS[name])
    bare = symbolic_bytes(forms.graph.step, forms.graph.problem, forms.names)
    states = [with_generator_states(forms.graph, s, np.zeros(len(s), dtype=np.int64)) for s in schedules]
    exact = [bare.peak(schedule, state) for schedule, state in zip(schedules, states, strict=True)]
    whole = [forms.peak(schedule) for schedule in schedules]
    shapes = held_out(forms)
    assert len(shapes) == HELD_OUT
    for sizes in shapes:
        without, within = problems_at(forms, sizes)
        assert [form.at(sizes) for form in exact] == [peak_at(forms, without, schedule) for schedule in schedules]
        for form, schedule in zip(whole, schedules, strict=True):
            assert form.at(sizes) == pytest.approx(peak_at(forms, within, schedule), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "unet"])
def test_operations_are_counted_at_all_sizes(name: str) -> None:
    forms = forms_of(name)
    for sizes in held_out(forms)[:5]:
        at = AtSizes(symbols_at(forms.names, sizes))
        assert forms.flops.at(sizes) == sum(int(flops(node, at)) for node in forms.graph.step.compute_nodes)


@pytest.mark.slow
def test_sizes_that_another_graph_serves_are_refused() -> None:
    forms = forms_of("bert")  # has 128 positions
    assert not forms.refusal({"batch": 300, "length": 128})
    assert "length 129" in forms.refusal({"batch": 4, "length": 129})


@pytest.mark.slow
def test_images_of_any_size_are_exact_where_a_network_takes_them() -> None:
    """Halves of sides are no polynomials in them; sides that are no multiples of 8 are refused."""
    case = ZOO["unet"]()
    dynamic = {"batch": 0, "height": {0: 2, 1: 1}, "width": {0: 3, 1: 2}}
    found = graphopt.estimate(case.model, case.args, dynamic=dynamic, cost_model="roofline")
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in ((2, 64, 64), (3, 128, 72)):
        images = torch.randn(batch, 3, height, width, generator=generator)
        there = graphopt.estimate(case.model, (images, (images.mean(1) > 0).long()), cost_model="roofline")
        sizes = {"batch": batch, "height": height, "width": width}
        assert found.peak(**sizes) == there.eager_peak_bytes
        assert found.by_size is not None and found.by_size.resident.at(sizes) == sum(there.resident_bytes.values())
    with pytest.raises(graphopt.UsageError, match="the graph that was captured serves sizes where"):
        found.peak(height=100)
