"""Plans and reports made by hand, for the tests of everything that only shows them."""

from __future__ import annotations

import math
from dataclasses import replace

from graphopt.problem.pieces import Pieces
from graphopt.problem.plan import Checkpoint, GraphPlan, KeptPoint, Plan
from graphopt.report.data import Comparison, GraphReport, Measured, Report

MIB = 2**20
RESIDENT = {"parameters": 20 * MIB, "buffers": MIB, "inputs": 4096, "optimizer": 40 * MIB, "reserve": 0}


def make_graph_plan(name: str = "graph 1", blocks: int = 6) -> GraphPlan:
    steps = 8 * blocks
    return GraphPlan(
        name=name,
        graph_hash="0123abcd",
        planner="search",
        cost_model="profiled",
        compiler="eager",
        numerics="reordered",
        pieces=Pieces(8, at_once=True),
        schedule=(*range(steps), *range(4, 12), *range(steps, 2 * steps)),
        budget_bytes=80 * MIB,
        peak_bytes=78 * MIB,
        eager_peak_bytes=240 * MIB,
        minimum_bytes=52 * MIB,
        seconds=0.1234567890123456789,
        eager_seconds=0.1,
        bound_seconds=0.119,
        checkpoints=tuple(make_checkpoint(i) for i in range(blocks)),
        recomputed=("gelu", "gelu", "layer_norm", "mm"),
        moved=(3, 7),
        fetch_seconds=(1e-3, 0.25),
        fetched=("mm_1_fetched", "gelu_fetched"),
        moved_bytes=4 * MIB,
        curve=(
            KeptPoint(52 * MIB, 0.161, "search", f"0-{steps - 1} 0-{steps - 1} {steps}-{2 * steps - 1}"),
            KeptPoint(240 * MIB, 0.1, "none", f"0-{2 * steps - 1}"),
        ),
        sizes={"args[0].size(0)": (2, 8), "args[0].size(1)": (16, 128)},
    )


def make_checkpoint(i: int) -> Checkpoint:
    return Checkpoint(
        value=f"add_{i}",
        bytes=MIB * (i + 1),
        shape=(4, 256, 256),
        dtype="float32",
        module_path=f"transformer.h.{i}.mlp",
        source=f"gpt2.py:{100 + i} in forward",
        recomputes=("native_layer_norm", "gelu", "gelu", "addmm") if i % 3 else (),
        recompute_seconds=0.0011 * (i % 3),
    )


def make_plan(graphs: int = 1, blocks: int = 6) -> Plan:
    resident = sum(RESIDENT.values())
    return Plan(
        model="GPT2LMHeadModel",
        device="cpu",
        torch_version="2.13.0",
        budget_bytes=150 * MIB,
        peak_bytes=78 * MIB + resident,
        eager_peak_bytes=240 * MIB + resident,
        minimum_bytes=52 * MIB + resident,
        resident_bytes=RESIDENT,
        graphs=tuple(make_graph_plan(f"graph {i + 1}", blocks) for i in range(graphs)),
    )


def make_report(graphs: int = 1, blocks: int = 6, measured: bool = True) -> Report:
    plan = make_plan(graphs, blocks)
    return Report(
        plan=plan,
        graphs=tuple(make_graph_report(p, "print() at train.py:7" if graphs > 1 else "") for p in plan.graphs),
        plan_seconds=1.5,
        measured=Measured(plan.peak_bytes + 70_000, plan.eager_peak_bytes - 9, 1.19) if measured else None,
    )


def make_graph_report(plan: GraphPlan, break_reason: str = "") -> GraphReport:
    steps = 300
    saw = [1 - abs(2 * i / steps - 1) for i in range(steps)]
    live = [0.6 * x + 0.33 * abs(math.sin(i / 9)) * (x > 0.05) for i, x in enumerate(saw)]
    scale = plan.peak_bytes / max(live)
    chosen = tuple(int(x * scale) for x in live)
    return GraphReport(
        plan=plan,
        break_reason=break_reason,
        live_bytes=chosen,
        eager_live_bytes=tuple(int(x * plan.eager_peak_bytes) for x in saw[::2]),
        boundary_step=140,
        eager_boundary_step=75,
        peak_step=chosen.index(max(chosen)),
        peak_op="mm_12",
        peak_source="gpt2.py:77 in forward",
        peak_breakdown={
            "activations": plan.peak_bytes - 12 * MIB,
            "gradients": 6 * MIB,
            "outputs": 1 * MIB,
            "tangents": 0,
            "recomputed": 3 * MIB,
            "workspace": 2 * MIB,
        },
        comparisons=(
            Comparison("eager", plan.eager_peak_bytes, 0.0),
            Comparison("sqrt_n", None, None),
            Comparison("chosen", plan.peak_bytes, 0.2345),
            Comparison("minimum", plan.minimum_bytes, 0.61),
        ),
        floor_changes=("half the batch 20.0 MiB", "the model in bfloat16 about 12.0 MiB"),
        curve=((52 * MIB, 0.61), (60 * MIB, 0.4), (78 * MIB, 0.2345), (120 * MIB, 0.09), (240 * MIB, 0.0)),
    )


def hostile_report() -> Report:
    """A report in which every text tries to be markup of a terminal or of a page."""
    evil = "<script>alert(1)</script>[red]&\"'</table>\x1b[31m"
    report = make_report(graphs=2)
    checkpoint = replace(make_checkpoint(1), value=evil, module_path=evil, source=evil, recomputes=(evil,), dtype=evil)
    graphs = tuple(
        replace(
            graph,
            plan=replace(graph.plan, name=evil, planner=evil, cost_model=evil, checkpoints=(checkpoint,)),
            break_reason=evil,
            peak_op=evil,
            peak_source=evil,
            peak_breakdown={evil: 1, **graph.peak_breakdown},
            comparisons=(Comparison(evil, 1, 0.0),),
        )
        for graph in report.graphs
    )
    plan = replace(report.plan, model=evil, device=evil, graphs=tuple(g.plan for g in graphs))
    return replace(report, plan=plan, graphs=graphs)
