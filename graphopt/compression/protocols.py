"""What each method of compression says and hears, written once for tensors and for fx proxies.

Where two ranks exchange what they have, more ranks would receive each other's wires one by one: quantized and bf16
gradients go in two phases then, the parts of which one rank adds up, and the sums of all parts. Sparse ones do not,
since the sum of many is no longer sparse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

import graphopt.kernels  # noqa: F401  the ops of all others
from graphopt.compression import plain
from graphopt.compression.bucket import (
    Agree,
    AllGather,
    AllReduce,
    AllToAll,
    Bucket,
    Message,
    Protocol,
    Shape,
    TensorLike,
)
from graphopt.compression.interleaving import Interleaved
from graphopt.compression.methods import (
    DGC,
    QSGD,
    Compression,
    EightBit,
    HalfCast,
    PowerSGD,
    Threshold,
    TopK,
    WholeMomentum,
)
from graphopt.compression.power import columns, matrix_shape

_ops = torch.ops.graphopt
_aten = torch.ops.aten

#: Smaller parameters travel as they are: what their indices or scales would save is less than what they cost.
SMALLEST_ELEMENTS = 1024


def protocol_of(method: Compression | None) -> Callable[[Bucket], Protocol]:
    """How a bucket travels that holds only what `compressible`; None is uncompressed, in fp32."""
    if isinstance(method, HalfCast):
        dtype = method.dtype
        # two bf16 numbers are rounded once wherever they are added
        return lambda bucket: (
            _bf16(bucket) if dtype == torch.bfloat16 and bucket.world > 2 else plain.packed(dtype)(bucket)
        )
    if isinstance(method, EightBit):
        return _eight_bit
    if isinstance(method, QSGD):
        bits, seed = method.bits, method.seed
        return lambda bucket: _qsgd(bucket, bits, seed)
    if isinstance(method, TopK):
        ratio = method.ratio
        return lambda bucket: _sparse(bucket, ratio, None)
    if isinstance(method, Threshold):
        capacity, value = method.capacity, method.value
        return lambda bucket: _sparse(bucket, capacity, value / bucket.world)
    if isinstance(method, DGC):
        ratio, momentum = method.ratio, method.momentum
        return lambda bucket: _with_momentum(bucket, ratio, momentum)
    if isinstance(method, WholeMomentum):
        factor = method.momentum
        return lambda bucket: _whole_with_momentum(bucket, factor)
    if isinstance(method, PowerSGD):
        rank = method.rank
        return lambda bucket: _power(bucket, rank)
    return plain.packed(torch.float32)


def at_step(method: Compression | None, step: int) -> Compression | None:
    """The method as it is in one step, counted from 0: DGC's ratio of that step, in place of its warm-up."""
    if isinstance(method, DGC):
        return replace(method, ratio=method.ratio_at(step), warmup_steps=0)
    return method


def travels_by(method: Compression | None, shape: Shape) -> Compression | None:
    """The method by which a parameter of this shape really travels; None where it travels as it is."""
    if compressible(method, shape):
        return method
    return WholeMomentum(method.momentum) if isinstance(method, DGC) else None


def compressible(method: Compression | None, shape: Shape) -> bool:
    """Whether a parameter of this shape goes through the method's protocol; all others go uncompressed."""
    elements = math.prod(shape)
    if isinstance(method, HalfCast | WholeMomentum):
        return True
    if method is None or elements < SMALLEST_ELEMENTS:
        return False
    if isinstance(method, PowerSGD):
        if len(shape) < 2:
            return False
        rows, width = matrix_shape(shape)
        return 2 * (rows + width) * columns(shape, method.rank) < elements  # as torch's hook: at least half is saved
    return True


def state_shapes(method: Compression | None, shape: Shape) -> dict[str, Shape]:
    """The fp32 tensors that a rank keeps for a parameter of this shape, in true units, by key.

    `residual` is what was not sent yet, `momentum` DGC's, `query` the right factor of PowerSGD's last step, which
    all ranks have alike. All but `query` are laid out like the gradient.
    """
    if isinstance(travels_by(method, shape), WholeMomentum):
        return {"momentum": shape}
    if not compressible(method, shape) or isinstance(method, HalfCast | QSGD):
        return {}
    if isinstance(method, DGC):
        return {"residual": shape, "momentum": shape}
    if isinstance(method, PowerSGD):
        return {"residual": shape, "query": (matrix_shape(shape)[1], columns(shape, method.rank))}
    return {"residual": shape}


def message_bytes(message: Message | Agree, world: int) -> int:
    """What a rank sends for it, as rings do it (gloo, NCCL); where parts are uneven, the mean over ranks.

    The flag of `Agree`, 4 bytes a step for all buckets, is not counted.
    """
    if isinstance(message, Agree):
        return 0
    payload_bytes = int(message.tensor.numel() * message.tensor.element_size())
    if isinstance(message, AllReduce):
        return 2 * (world - 1) * payload_bytes // world
    if isinstance(message, AllToAll):
        return (world - 1) * payload_bytes // world
    return (world - 1) * payload_bytes


def wire_bytes(method: Compression | None, shapes: Sequence[Shape], world: int, backend: str = "gloo") -> int:
    """What a rank sends in a step for gradients of these shapes in one bucket, without the headers of the network.

    Found by running the protocols on tensors without data, so that it is what they do.
    """
    compressed = [shape for shape in shapes if compressible(method, shape)]
    plain = [shape for shape in shapes if not compressible(method, shape)]
    parts = [(method, compressed), (None, plain)]
    return sum(_sent_bytes(how, tuple(some), world, backend) for how, some in parts if some)


def _sent_bytes(method: Compression | None, shapes: tuple[Shape, ...], world: int, backend: str) -> int:
    def empty(shape: Shape) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    state: dict[str, list[TensorLike]] = {}
    for shape in shapes:
        for key, its_shape in state_shapes(method, shape).items():
            state.setdefault(key, []).append(empty(its_shape))
    bucket = Bucket(shapes, [empty(shape) for shape in shapes], empty(()), 0, world, backend, state)
    sent: list[int] = []

    def begin(message: Message) -> TensorLike:
        sent.append(message_bytes(message, world))
        tensor = message.tensor
        return tensor.new_empty(world * tensor.numel()) if isinstance(message, AllGather) else tensor

    one = Interleaved(begin, lambda answer: answer)
    one.start(protocol_of(method)(bucket))
    one.finish(lambda: None)
    return sum(sent)


def _bf16(bucket: Bucket) -> Protocol:
    """The sum of half wires, each element added up in fp32 and rounded once."""
    world, elements = bucket.world, sum(map(math.prod, bucket.shapes))
    flat, padding = _ops.pack.default(bucket.gradients, torch.bfloat16), -elements % world
    if padding:
        flat = _aten.constant_pad_nd.default(flat, [0, padding])
    received = yield AllToAll(flat)
    total = yield AllGather(_ops.sum_parts.default(received, world))
    if padding:
        total = _aten.slice.Tensor(total, 0, 0, elements)
    plain.check(bucket, total)
    yield Agree()
    _ops.unpack_.default(total, bucket.gradients)


def _eight_bit(bucket: Bucket) -> Protocol:
    residuals, world = bucket.state["residual"], bucket.world
    parts = world if world > 2 else 1
    wire = _ops.quantize_.default(bucket.gradients, residuals, bucket.overflow, bucket.inverse_scale, parts)
    if world > 2:
        received = yield AllToAll(wire)
        wire = _ops.requantize_.default(received, bucket.gradients, bucket.rank, world)
    wires = yield AllGather(wire)
    yield Agree()
    if residuals:
        _ops.commit_.default(residuals, bucket.gradients, bucket.overflow)
    _ops.dequantize_.default(wires, bucket.gradients, 1 if world > 2 else world, bucket.scale)


def _qsgd(bucket: Bucket, bits: int, seed: int) -> Protocol:
    wire = _ops.qsgd.default(
        bucket.gradients, bucket.overflow, bucket.inverse_scale, bits, 1, seed, bucket.draw, bucket.rank
    )
    wires = yield AllGather(wire)
    yield Agree()
    _ops.dequantize_qsgd_.default(wires, bucket.gradients, bucket.world, bits, bucket.scale)


def _counts(bucket: Bucket, ratio: float) -> list[int]:
    return [max(1, round(ratio * math.prod(shape))) for shape in bucket.shapes]


def _sparse(bucket: Bucket, ratio: float, threshold: float | None) -> Protocol:
    residuals, counts = bucket.state["residual"], _counts(bucket, ratio)
    wire = _ops.sparsify_.default(bucket.gradients, residuals, bucket.overflow, bucket.inverse_scale, counts, threshold)
    wires = yield AllGather(wire)
    yield Agree()
    _ops.commit_.default(residuals, bucket.gradients, bucket.overflow)
    _ops.desparsify_.default(wires, bucket.gradients, bucket.world, counts, bucket.scale)


def _with_momentum(bucket: Bucket, ratio: float, momentum: float) -> Protocol:
    residuals, momenta, counts = bucket.state["residual"], bucket.state["momentum"], _counts(bucket, ratio)
    both = _ops.sparsify_momentum_.default(
        bucket.gradients, residuals, momenta, bucket.overflow, bucket.inverse_scale, counts, momentum
    )
    wire, all_pending = both[0], both[1]
    pending = [all_pending[index] for index in range(len(momenta))]
    wires = yield AllGather(wire)
    yield Agree()
    _ops.commit_.default(residuals, bucket.gradients, bucket.overflow)
    _ops.commit_.default(momenta, pending, bucket.overflow)
    _ops.desparsify_.default(wires, bucket.gradients, bucket.world, counts, bucket.scale)


def _whole_with_momentum(bucket: Bucket, momentum: float) -> Protocol:
    """The sum of the ranks' momenta is the momentum of their sum."""
    gradients, momenta = bucket.gradients, bucket.state["momentum"]
    if bucket.inverse_scale is not None:
        _aten._foreach_mul_.Tensor(gradients, bucket.inverse_scale)
    _aten._foreach_add_.List(gradients, momenta, alpha=momentum)
    total = yield AllReduce(_ops.pack.default(gradients, torch.float32))
    plain.check(bucket, total)
    yield Agree()
    _ops.commit_.default(momenta, gradients, bucket.overflow)
    _ops.unpack_.default(total, gradients)
    if bucket.scale is not None:
        _aten._foreach_mul_.Tensor(gradients, bucket.scale)


def _power(bucket: Bucket, rank: int) -> Protocol:
    gradients, residuals, queries = bucket.gradients, bucket.state["residual"], bucket.state["query"]
    lefts = yield AllReduce(
        _ops.power_left_.default(gradients, residuals, queries, bucket.overflow, bucket.inverse_scale)
    )
    both = _ops.power_right.default(gradients, lefts, rank)
    lefts = both[0]
    rights = yield AllReduce(both[1])
    yield Agree()
    _ops.power_finish_.default(
        gradients, residuals, queries, lefts, rights, bucket.overflow, bucket.scale, bucket.world
    )
