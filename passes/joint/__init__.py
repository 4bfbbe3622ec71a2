"""The passes over the joint graph of one micro-batch, as lists in the order in which they run.

First those of CLEANING, then what becomes of the gradients. A new pass is a file with a function that
takes a JointGraph and says whether it changed it, and a line here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from graphopt.compression.methods import Compression
from graphopt.device.ranks import Ranks
from graphopt.graph.joint import JointGraph
from graphopt.passes.joint.accumulate import accumulate
from graphopt.passes.joint.add_in_place import add_in_place
from graphopt.passes.joint.add_to_gradients import add_to_gradients
from graphopt.passes.joint.causal_masks import causal_masks
from graphopt.passes.joint.chunks.chunk import chunk
from graphopt.passes.joint.compress import compress
from graphopt.passes.joint.contract import gradients_are_unused, no_gradient_is_returned, no_symbol_is_constant
from graphopt.passes.joint.free_shapes import free_shapes
from graphopt.passes.joint.keep_gradients import keep_gradients
from graphopt.passes.joint.own_gradients import own_gradients
from graphopt.passes.joint.read_written_parts import read_written_parts
from graphopt.passes.joint.sharding.how import CompressedRows, RowsOver
from graphopt.passes.joint.sharding.shard import shard
from graphopt.passes.joint.sizes_from_inputs import sizes_from_inputs
from graphopt.passes.joint.skip_clones import skip_clones
from graphopt.passes.joint.skip_copies import skip_copies
from graphopt.passes.joint.specialize import specialize
from graphopt.passes.joint.split_dropout import split_dropout
from graphopt.passes.joint.sum_in_place import sum_in_place
from graphopt.passes.joint.undefined_tangents import undefined_tangents
from graphopt.passes.joint.unread_statistics import unread_statistics
from graphopt.passes.joint.update_in_backward import update_in_backward
from graphopt.passes.run_passes import NamedPass
from graphopt.passes.window.update import GroupUpdate
from graphopt.problem.pieces import Pieces

Passes = tuple[NamedPass[JointGraph], ...]

CLEANING: Passes = (
    NamedPass("specialize", specialize, ensures=(no_symbol_is_constant,)),
    NamedPass("causal_masks", causal_masks, requires=(no_symbol_is_constant,)),
    NamedPass("skip_copies", skip_copies, requires=(no_symbol_is_constant,)),
    NamedPass("read_written_parts", read_written_parts, requires=(no_symbol_is_constant,)),
    NamedPass("skip_clones", skip_clones, requires=(no_symbol_is_constant,)),
    NamedPass("free_shapes", free_shapes, requires=(no_symbol_is_constant,)),
    NamedPass("unread_statistics", unread_statistics),
    NamedPass("add_in_place", add_in_place, requires=(no_symbol_is_constant,)),
    NamedPass("split_dropout", split_dropout, requires=(no_symbol_is_constant,)),
    NamedPass("sizes_from_inputs", sizes_from_inputs, requires=(no_symbol_is_constant,)),
)

RETURN_GRADIENTS: Passes = (NamedPass("own_gradients", own_gradients, requires=(gradients_are_unused,)),)


def summing_in_place(handing_over: Passes) -> Passes:
    """What becomes of gradients, and sums of them in place: for operators that are kernels each."""
    return (*handing_over, NamedPass("sum_in_place", sum_in_place))


def add_gradients(wanted: Iterable[int]) -> Passes:
    """Gradients of the primals at positions `wanted` are added to those that are there; others are returned."""
    run = partial(add_to_gradients, wanted=wanted)
    return (
        NamedPass("add_to_gradients", run, requires=(gradients_are_unused,)),
        NamedPass("own_gradients", own_gradients),
    )


def with_tangents(defined: frozenset[int]) -> NamedPass[JointGraph]:
    """Only the tangents at positions `defined` are defined."""
    run = partial(undefined_tangents, defined=defined)
    return NamedPass("undefined_tangents", run, requires=(no_symbol_is_constant, gradients_are_unused))


def in_pieces(pieces: Pieces, *, tangent_is_known: bool) -> Passes:
    """What is independent row by row is run in so many pieces; the forward may read the tangent, where it is known."""
    run = partial(chunk, pieces=pieces, tangent_is_known=tangent_is_known)
    return (NamedPass("chunk", run, requires=(no_symbol_is_constant, gradients_are_unused)),)


def return_gradients(wanted: Iterable[int]) -> Passes:
    """Gradients of the primals at positions `wanted` are returned, and only those."""
    return (
        NamedPass("keep_gradients", partial(keep_gradients, wanted=wanted), requires=(gradients_are_unused,)),
        *RETURN_GRADIENTS,
    )


def sum_gradients(wanted: Iterable[int], *, fuse_products: bool) -> Passes:
    """Gradients of the primals at positions `wanted` are summed up over micro-batches."""
    run = partial(accumulate, wanted=wanted, fuse_products=fuse_products)
    return (NamedPass("accumulate", run, requires=(gradients_are_unused,), ensures=(no_gradient_is_returned,)),)


def shard_parameters(positions: Iterable[int], how: RowsOver, compressed: CompressedRows | None = None) -> Passes:
    """The primals at these positions are this rank's rows of parameters; `compressed` is how gradients travel."""
    run = partial(shard, positions=frozenset(positions), how=how, compressed=compressed)
    return (NamedPass("shard", run, requires=(gradients_are_unused,)),)


def send_sums(ranks: Ranks, methods: Mapping[int, Compression | None], *, scaled: bool) -> Passes:
    """The sums of `sum_gradients` go to the other ranks; `methods` as in `compress`."""

    def run(joint: JointGraph) -> bool:
        return compress(joint.module, ranks, methods, scaled=scaled)

    return (NamedPass("compress", run, requires=(no_gradient_is_returned,)),)


def update_parameters(updates: Mapping[int, GroupUpdate], *, clip_value: float | None) -> Passes:
    """The primals at positions `updates` are updated as soon as their gradients exist."""
    run = partial(update_in_backward, updates=updates, clip_value=clip_value)
    return (NamedPass("update_in_backward", run, requires=(gradients_are_unused,), ensures=(no_gradient_is_returned,)),)
