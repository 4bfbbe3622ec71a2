"""What peers of `auto` would run, as schedules of our problem: the simulator then prices both alike."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import torch._functorch.config
from torch import fx
from torch._functorch.partitioners import min_cut_rematerialization_partition

from graphopt.graph.captured_graph import CapturedGraph
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule, check_schedule

_BLOCK = re.compile(r"^(.*?\b(?:h|layers?|blocks?))\.(\d+)\b")
_TAG = "graphopt_benchmark_op"


def block_of(module_path: str) -> str:
    """Which repeated block made an op: the path up to its first number; "" outside of all blocks."""
    found = _BLOCK.match(module_path)
    return found.group() if found else ""


def checkpoint_every_block(captured: CapturedGraph) -> Schedule:
    """What `torch.utils.checkpoint` around every block runs.

    The forward as captured, the boundary, the backward; where the backward first reads a value of a
    block that neither enters nor leaves it, the block's forward ops that its backward needs run
    again at once. What is read outside the block that made it stays alive: it is some block's input.
    """
    step, problem = captured.step, captured.problem
    blocks = [
        "" if op.backward or not op.recomputable or i == step.boundary else block_of(op.module_path)
        for i, op in enumerate(step.ops)
    ]
    again = _values_made_again(problem, blocks)
    schedule = list(range(step.boundary + 1))
    done: set[str] = set()
    for op_id in range(step.boundary + 1, len(problem.ops)):
        for value in problem.ops[op_id].inputs:
            block = blocks[problem.producer[value]] if value in again else ""
            if block and block not in done:
                done.add(block)
                schedule += _ops_again(problem, blocks, again, block)
        schedule.append(op_id)
    return check_schedule(problem, schedule)


def _values_made_again(problem: Problem, blocks: Sequence[str]) -> set[int]:
    """Values of a block that no forward op outside of it reads: checkpointing drops them."""
    again = set()
    for value, maker in enumerate(problem.producer):
        if maker < 0 or not blocks[maker] or value in problem.outputs:
            continue
        if all(problem.ops[r].backward or blocks[r] == blocks[maker] for r in problem.readers[value]):
            again.add(value)
    return again - set(problem.ops[problem.first_backward].inputs)


def _ops_again(problem: Problem, blocks: Sequence[str], again: set[int], block: str) -> list[int]:
    """The block's ops, in order, that make what the backward reads of it."""
    wanted = {v for v in again if any(problem.ops[r].backward for r in problem.readers[v])}
    chosen = []
    for op_id in reversed(range(problem.first_backward)):
        op = problem.ops[op_id]
        if blocks[op_id] == block and wanted & set(op.outputs):
            chosen.append(op_id)
            wanted.update(again & set(op.inputs))
    return chosen[::-1]


def pytorch_budget(captured: CapturedGraph, ratio: float) -> Schedule:
    """What PyTorch's partitioner runs at an `activation_memory_budget` of `ratio`.

    It gets a copy of the joint graph as our passes left it, so that both choose among the same ops:
    dropout masks can be kept without the product, and gradients are copied where autograd would.
    Merging of equal subexpressions is off, since a merged op has no place in our problem. An op of
    ours that neither of its graphs holds runs right before its first reader, or at the end.
    """
    step = captured.step
    joint = copy.deepcopy(step.joint.module)
    number = {op.node.name: i for i, op in enumerate(step.ops) if op.node is not None}
    for node in joint.graph.nodes:
        if node.name in number:
            node.meta[_TAG] = number[node.name]
    static = [i for i, node in enumerate(step.joint.primals) if node.name in step.static_inputs]
    with torch._functorch.config.patch(activation_memory_budget=ratio, cse=False):
        halves = min_cut_rematerialization_partition(
            joint, None, num_fwd_outputs=step.joint.num_forward_outputs, static_lifetime_input_indices=static
        )
    forward, backward = ([n.meta[_TAG] for n in half.graph.nodes if _is_ours(n)] for half in halves)
    return check_schedule(captured.problem, _with_missing(captured.problem, [*forward, step.boundary, *backward]))


def _is_ours(node: fx.Node) -> bool:
    return node.op == "call_function" and _TAG in node.meta


def _with_missing(problem: Problem, schedule: Sequence[int]) -> list[int]:
    """`schedule` with the ops that it lacks, each right before its first reader, or at the end."""
    there = set(schedule)
    made: set[int] = set()
    complete: list[int] = []

    def run(op_id: int) -> None:
        for value in problem.ops[op_id].inputs:
            maker = problem.producer[value]
            if maker >= 0 and maker not in there and value not in made:
                run(maker)
        complete.append(op_id)
        made.update(problem.ops[op_id].outputs)

    for op_id in schedule:
        run(op_id)
    for op_id in range(len(problem.ops)):
        if op_id not in there and not set(problem.ops[op_id].outputs) & made:
            run(op_id)
    return complete
