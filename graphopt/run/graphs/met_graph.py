"""From what Dynamo hands a backend to a DynamoGraph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from graphopt.capture.ambient import ambient
from graphopt.capture.aot import break_reason
from graphopt.capture.captures import this_capture
from graphopt.capture.changing_sizes import Sizes, fix_sizes
from graphopt.capture.dynamo import is_own_frame
from graphopt.problem.plan import GraphPlan
from graphopt.run.graphs.dynamo_graph import DynamoGraph, Surroundings
from graphopt.run.graphs.gradients import GradientSums
from graphopt.run.graphs.input_symbols import InputSymbols
from graphopt.run.graphs.meeting_graphs import fake_inputs
from graphopt.run.graphs.studies import Studies
from graphopt.run.graphs.tangents import Tangents

#: Graphs that are kept, as each holds code and fake tensors: the least recently used go. One of a TransformerEncoder of
#: 12 layers takes 21 MiB of host memory.
MOST_GRAPHS = 256
#: Captures after which Dynamo's part is made anew, which keeps a trace of each that was dropped.
MOST_CAPTURES = 16 * MOST_GRAPHS


def too_many(graphs: Sequence[DynamoGraph], call: int) -> list[DynamoGraph]:
    """Those above `MOST_GRAPHS` that were not used for longest; none of this call or of the one before."""
    excess = max(len(graphs) - MOST_GRAPHS, 0)
    idle = [graph for graph in graphs if graph.last_call < call - 1]
    return sorted(idle, key=lambda graph: graph.last_call)[:excess]


def met_graph(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    kept: Mapping[str, GraphPlan] | None,
    surroundings: Surroundings,
    sizes: Sizes,
    others: Sequence[GradientSums],
) -> DynamoGraph:
    """The graph that Dynamo has met, inside of its backend; `kept` are the plans of a saved one, by hash.

    `others` tell how the model's graphs hand their gradients over.
    """
    fix_sizes(module, sizes)
    tracing = torch._guards.TracingContext.get()
    assert tracing is not None
    examples, is_outermost = fake_inputs(module, inputs, tracing.fake_mode), is_own_frame()
    tangents = Tangents(None if kept is None else tuple(kept), is_outermost and not break_reason(module))
    symbols = InputSymbols(module)
    known = (tangents, this_capture(), symbols, Studies(symbols.captured), sizes)
    graph = DynamoGraph(module, examples, tracing, ambient(), is_outermost, surroundings, *known)
    graph.sums.takes_over(others)
    return graph
