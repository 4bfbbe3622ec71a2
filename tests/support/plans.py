"""Plans and reports made by hand, for the tests of everything that only shows them."""

from __future__ import annotations

from dataclasses import replace

from graphopt.problem.graph_break import GraphBreak
from graphopt.problem.pieces import Pieces
from graphopt.problem.plan import Checkpoint, GraphPlan, KeptPoint, ModuleShare, Plan
from graphopt.report.data import Comparison, GraphReport, Measured, Report, TakenStep
from graphopt.report.timeline import GraphTable, GraphTimeline, OpRow, ValueRow

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
        modules=tuple(make_share(i) for i in range(blocks)),
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


def make_share(i: int) -> ModuleShare:
    return ModuleShare(
        path=f"transformer.h.{i}.mlp",
        seconds=0.02,
        peak_bytes=MIB * (i + 2),
        kept=1,
        kept_bytes=MIB * (i + 1),
        recomputed=4 if i % 3 else 0,
        again_seconds=0.0011 * (i % 3),
        fetched=0,
        fetched_bytes=0,
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


def make_timeline(name: str, peak_bytes: int, steps: int) -> GraphTimeline:
    """A saw of so many steps, half of it forward, whose peak is right behind the middle; it is made of what is alive.

    Each op of the forward makes a value that its op of the backward reads. At the peak there are besides a gradient,
    an output, something made again and workspace.
    """
    half = steps // 2
    outer, peak = 2 * MIB, 10 * MIB
    kept = (peak_bytes - outer - peak) // half
    sizes = [kept + (peak_bytes - outer - peak - kept * half if not i else 0) for i in range(half)]
    values = [
        ValueRow(f"add_{i}", size, "activations", (4, 256, size // 4096), "float32", i) for i, size in enumerate(sizes)
    ]
    kinds = ("gradients", 6 * MIB), ("outputs", MIB), ("activations", 3 * MIB)
    values += [
        ValueRow(f"{kind}_0", size, kind, (size,), "uint8", -1 if i == 2 else half)
        for i, (kind, size) in enumerate(kinds)
    ]
    again = half - 1, half + 2  # an op of the forward runs again, for the last value alone
    values[half + 2] = ValueRow("gelu_0", 3 * MIB, "activations", (3 * MIB,), "uint8", again[0])
    forward = [make_op(f"mm_{i}", i, half, (i - 1,) if i else (), (i,)) for i in range(half)]
    forward[-1] = make_op("gelu_0", half - 1, half, (half - 2,), (half - 1, half + 2))
    backward = [make_op(f"mm_{half + i}", half - 1 - i, half, (half - 1 - i,), (), backward=True) for i in range(half)]
    backward[0] = replace(
        backward[0], name="mm_12", source="gpt2.py:77 in forward", outputs=(half, half + 1), workspace_bytes=2 * MIB
    )
    schedule = (*range(half), again[0], *range(half, steps))
    lifetimes = [(i, i, 2 * half - i) for i in range(half)]
    lifetimes[-1] = (half - 1, half - 1, half + 1)
    lifetimes += [(half, half + 1, half + 1), (half + 1, half + 1, 2 * half), (half + 2, half, half + 1)]
    table = GraphTable((*forward, *backward), tuple(values))
    live = [0] * len(schedule)
    for value, first, last in lifetimes:
        for step in range(first, last + 1):
            live[step] += values[value].bytes
    live = [size + table.ops[op].workspace_bytes for size, op in zip(live, schedule, strict=True)]
    states = (0,) * len(schedule)
    return GraphTimeline(name, table, schedule, half, tuple(live), states, tuple(sorted(lifetimes, key=lambda s: s[1])))


def make_op(
    name: str, i: int, half: int, inputs: tuple[int, ...], outputs: tuple[int, ...], backward: bool = False
) -> OpRow:
    where = f"transformer.h.{6 * i // half}.mlp", f"gpt2.py:{100 + i} in forward"
    return OpRow(name, *where, 1e-3, 0, inputs, outputs, backward, not backward, False)


def make_graph_report(plan: GraphPlan, break_reason: str = "") -> GraphReport:
    return GraphReport(
        plan=plan,
        break_reason=break_reason,
        timelines=(
            make_timeline("eager", plan.eager_peak_bytes, 150),
            make_timeline("chosen", plan.peak_bytes, 300),
            make_timeline("minimum", plan.minimum_bytes, 320),
        ),
        comparisons=(
            Comparison("eager", plan.eager_peak_bytes, 0.0),
            Comparison("sqrt_n", None, None),
            Comparison("chosen", plan.peak_bytes, 0.2345),
            Comparison("minimum", plan.minimum_bytes, 0.61),
        ),
        floor_changes=("half the batch 20.0 MiB", "the model in bfloat16 about 12.0 MiB"),
        curve=(
            (52 * MIB, 0.61, "search"),
            (60 * MIB, 0.4, "chain"),
            (78 * MIB, 0.2345, "search"),
            (120 * MIB, 0.09, "mincut"),
            (240 * MIB, 0.0, "none"),
        ),
    )


def hostile_report() -> Report:
    """A report in which every text tries to be markup of a terminal or of a page."""
    evil = "<script>alert(1)</script>[red]&\"'</table>\x1b[31m"
    report = make_report(graphs=2)
    checkpoint = replace(make_checkpoint(1), value=evil, module_path=evil, source=evil, recomputes=(evil,), dtype=evil)
    share = ModuleShare(evil, 1.0, 1, 1, 1, 1, 1.0, 1, 1)
    graphs = tuple(
        replace(
            graph,
            plan=replace(
                graph.plan, name=evil, planner=evil, cost_model=evil, checkpoints=(checkpoint,), modules=(share,)
            ),
            break_reason=evil,
            timelines=tuple(hostile_timeline(each, evil) for each in graph.timelines),
            comparisons=(Comparison(evil, 1, 0.0),),
            curve=((52 * MIB, 0.61, evil), (78 * MIB, 0.2345, evil)),
            floor_changes=(evil,),
        )
        for graph in report.graphs
    )
    plan = replace(report.plan, model=evil, device=evil, graphs=tuple(g.plan for g in graphs))
    history = (TakenStep(1, 2, evil), TakenStep(2, 2, evil))
    return replace(report, plan=plan, graphs=graphs, breaks=(GraphBreak(evil, evil, evil),), history=history)


def hostile_timeline(timeline: GraphTimeline, evil: str) -> GraphTimeline:
    ops = tuple(replace(op, name=evil, module_path=evil, source=evil) for op in timeline.table.ops)
    values = tuple(replace(value, name=evil, kind=evil, dtype=evil) for value in timeline.table.values)
    return replace(timeline, table=GraphTable(ops, values))
