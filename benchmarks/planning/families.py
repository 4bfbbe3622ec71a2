"""Training steps of any size, made up: what planning time and memory are measured on."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from graphopt.problem.problem import Op, Problem, Value

KIB, MIB = 1024, 1024**2


@dataclass
class _Builder:
    """Writes a training step op by op; times are those of a machine of 50 GFLOP/s and 10 GB/s."""

    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def value(self, size: int) -> int:
        self.values.append(Value(size))
        return len(self.values) - 1

    def op(self, name: str, reads: list[int], sizes: list[int], flops: float = 0.0, *, backward: bool) -> list[int]:
        out = [self.value(size) for size in sizes]
        moved = sum(sizes) + sum(self.values[v].bytes for v in set(reads))
        seconds = 2e-6 + max(flops / 5e10, moved / 1e10)
        self.ops.append(Op(name, seconds, 0, tuple(dict.fromkeys(reads)), tuple(out), backward))
        return out

    def problem(self) -> Problem:
        return Problem(tuple(self.values), tuple(self.ops), tuple(self.outputs))


def transformer(layers: int, width: int = 256, tokens: int = 1024, heads: int = 4, length: int = 256) -> Problem:
    """A GPT-like training step: 24 forward and 34 backward ops a block, weight gradients as outputs."""
    b = _Builder()
    wide, narrow = tokens * width * 4, tokens * 4
    tape: list[tuple[str, list[int], int, list[int]]] = []

    def forward(name: str, reads: list[int], sizes: list[int], flops: float = 0.0, weight: int = 0) -> list[int]:
        out = b.op(name, reads, sizes, flops, backward=False)
        tape.append((name, reads, weight, out))
        return out

    def linear(name: str, x: int, rows: int, columns: int) -> int:
        flops = 2.0 * tokens * rows * columns
        (flat,) = forward("clone", [x], [tokens * rows * 4])
        (y,) = forward(name, [flat], [tokens * columns * 4], flops, rows * columns * 4)
        return y

    (x,) = b.op("embedding", [], [wide], backward=False)
    scores = tokens * length * heads * 4
    for _ in range(layers):
        normed, *_ = forward("layer_norm", [x], [wide, narrow, narrow], weight=width * 8)
        q, k, v = (linear("mm", normed, width, width) for _ in range(3))
        (s,) = forward("bmm", [q, k], [scores], 2.0 * tokens * length * width)
        (scaled,) = forward("scale_mask", [s], [scores])
        (p,) = forward("softmax", [scaled], [scores])
        dropped, _ = forward("dropout", [p], [scores, scores // 4])
        (attended,) = forward("bmm", [dropped, v], [wide], 2.0 * tokens * length * width)
        projected = linear("mm", attended, width, width)
        noisy, _ = forward("dropout", [projected], [wide, wide // 4])
        (x,) = forward("add", [x, noisy], [wide])
        normed, *_ = forward("layer_norm", [x], [wide, narrow, narrow], weight=width * 8)
        hidden = linear("mm", normed, width, 4 * width)
        (active,) = forward("gelu", [hidden], [4 * wide])
        noisy, _ = forward("dropout", [linear("mm", active, 4 * width, width)], [wide, wide // 4])
        (x,) = forward("add", [x, noisy], [wide])
    (gradient,) = b.op("loss_boundary", [x], [wide], backward=True)
    b.outputs.append(x)
    _write_backward(b, tape, {x: gradient})
    return b.problem()


def _write_backward(b: _Builder, tape: list[tuple[str, list[int], int, list[int]]], gradient: dict[int, int]) -> None:
    """One or two backward ops for each forward op; gradients that meet are added."""

    def reach(value: int, new: int) -> None:
        if value in gradient:
            (new,) = b.op("add", [gradient[value], new], [b.values[value].bytes], backward=True)
        gradient[value] = new

    for name, reads, weight, out in reversed(tape):
        g, size = gradient[out[0]], [b.values[v].bytes for v in reads]
        if name == "mm":
            flops = 2.0 * weight / 4 * b.values[reads[0]].bytes / 4 / max(1, math.isqrt(weight // 4))
            reach(reads[0], b.op("mm_backward", [g], size, flops, backward=True)[0])
            b.outputs += b.op("weight_grad", [g, reads[0]], [weight], flops, backward=True)
            b.outputs += b.op("bias_grad", [g], [4 * KIB], backward=True)
        elif name == "bmm":
            for mine, other in (reads, reads[::-1]):
                reach(mine, b.op("bmm_backward", [g, other], [b.values[mine].bytes], 5e8, backward=True)[0])
        elif name == "layer_norm":
            got = b.op("layer_norm_backward", [g, reads[0], *out[1:]], [size[0], weight], backward=True)
            reach(reads[0], got[0])
            b.outputs.append(got[1])
        elif name == "add":
            for value in reads:
                reach(value, g)
        else:
            saved = {"gelu": reads, "softmax": out, "dropout": out[1:]}.get(name, [])
            reach(reads[0], b.op(f"{name}_backward", [g, *saved], size[:1], backward=True)[0])


def residual(blocks: int, seed: int = 0) -> Problem:
    """Blocks of 12 forward ops, two of which also read what stands some ops before, and one backward op for each.

    Sizes are drawn from {1, 1, 2, 4} MiB and times from 1 to 10 ms, so that no two blocks are alike.
    """
    rng = random.Random(seed)
    reads: list[list[int]] = []
    for _ in range(blocks):
        first, skips = len(reads), {}
        for _ in range(2):
            end = rng.randrange(3, 12)
            skips[end] = rng.randrange(end - 2)
        for place in range(12):
            before = [first + place - 1] if first + place else []
            reads.append([*before, *([first + skips[place]] if place in skips else [])])
    return _trained(reads, rng)


def chain(ops: int, seed: int = 0) -> Problem:
    """Half of so many forward ops, each of which reads the one before it, and their backward."""
    return _trained([[i - 1] if i else [] for i in range(ops // 2)], random.Random(seed))


def u_net(ops: int, seed: int = 0) -> Problem:
    """A forward whose second half reads, ever farther back, every fourth value of the first."""
    half = ops // 4
    reads = [[i - 1] if i else [] for i in range(2 * half)]
    for place in range(half, 2 * half):
        if place % 4 == 0 and place > half:
            reads[place].append(2 * half - 1 - place)
    return _trained(reads, random.Random(seed))


def layered(layers: int, width: int = 32, reads_each: int = 3, seed: int = 0) -> Problem:
    """Layers of `width` forward ops, each of which reads some of the layer before it."""
    rng = random.Random(seed)
    reads: list[list[int]] = [[] for _ in range(width)]
    for layer in range(1, layers):
        first = (layer - 1) * width
        reads += [sorted(rng.sample(range(first, first + width), reads_each)) for _ in range(width)]
    return _trained(reads, rng)


def _trained(reads: list[list[int]], rng: random.Random) -> Problem:
    """A forward op for each row of the ops that it reads, and then, from the last to the first, its backward.

    A backward op reads the gradients of what the forward op made, one of each reader, and what it read and made; it
    makes a gradient of each value that was read.
    """
    sizes = [rng.choice((1, 1, 2, 4)) * MIB for _ in reads]
    values = [Value(size) for size in sizes]
    ops = [Op("", rng.uniform(1e-3, 1e-2), 0, tuple(row), (i,)) for i, row in enumerate(reads)]
    gradient: dict[int, list[int]] = {}
    for op_id in range(len(reads) - 1, -1, -1):
        made = []
        for read in reads[op_id]:
            gradient.setdefault(read, []).append(len(values))
            made.append(len(values))
            values.append(Value(sizes[read]))
        inputs = dict.fromkeys((*gradient.get(op_id, ()), *reads[op_id], op_id))
        if not made:  # a weight's gradient is all that is left to compute
            made.append(len(values))
            values.append(Value(sizes[op_id]))
        ops.append(Op("", 2 * ops[op_id].seconds, 0, tuple(inputs), tuple(made), True))
    read = {value for op in ops for value in op.inputs}
    outputs = tuple(value for value in range(len(reads), len(values)) if value not in read)
    return Problem(tuple(values), tuple(ops), outputs)


#: By name, a problem of about so many ops.
FAMILIES: dict[str, Callable[[int], Problem]] = {
    "transformer": lambda ops: transformer(max(1, round(ops / 64))),
    "residual": lambda ops: residual(max(1, round(ops / 24))),
    "chain": chain,
    "u_net": u_net,
    "layered": lambda ops: layered(max(2, round(ops / 64))),
}
