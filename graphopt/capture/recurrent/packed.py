"""Packed sequences in what Dynamo captures: their sizes are data, which are read, and guarded, for each capture.

Dynamo breaks its graph at packing and padding. Here they are ops whose sizes are arguments. A graph is for one number
of sequences, of steps, and of rows in all: how many rows each step has is data of a call. Where the lengths cannot be
known while the model is captured, the graph breaks at the packing alone: what eager packs is an input of the next one.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import Tensor, nn
from torch._dynamo.exc import unimplemented
from torch._dynamo.variables import (
    BuiltinVariable,
    ConstantVariable,
    ListVariable,
    SkipFunctionVariable,
    TorchInGraphFunctionVariable,
    TupleVariable,
    UserFunctionVariable,
)
from torch._dynamo.variables.tensor import NumpyNdarrayVariable, SymNodeVariable
from torch.nn.utils import rnn

from graphopt.capture.recurrent.eagers_kernels import are_few, by_cudnn
from graphopt.capture.recurrent.known_integers import known_integers
from graphopt.capture.recurrent.loops import KINDS
from graphopt.kernels.recurrent import packing

_RECURRENT = frozenset(getattr(torch, kind) for kind in KINDS)
#: In the notes of a node that gives the rows of each step: how many these are, where the capture is for those alone.
BATCH_SIZES = "graphopt_batch_sizes"
#: Of code that makes a number of `batch_sizes[0]`.
_COUNTS_SEQUENCES = frozenset(
    function.__code__
    for function in (
        *(nn.RNN.forward, nn.GRU.forward, nn.LSTM.forward),
        *(nn.RNNBase.get_expected_hidden_size, nn.LSTM.get_expected_cell_size),
    )
)


@contextmanager
def packed_sequences() -> Iterator[None]:
    """Let Dynamo capture packing, padding, and what recurrent modules ask of a packed sequence."""
    skip, in_graph = SkipFunctionVariable.call_function, TorchInGraphFunctionVariable.call_function
    built_in = BuiltinVariable._handle_insert_op_in_graph

    def skipped(function: Any, tx: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        capture = _CAPTURED.get(function.value) if inspect.isfunction(function.value) else None
        found = capture(tx, _bound(function.value, args, kwargs)) if capture is not None else None
        return skip(function, tx, args, kwargs) if found is None else found

    def called(function: Any, tx: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if function.value in _RECURRENT and len(args) == 9 and is_packed(args):
            _fix_batch_sizes(tx, args)
        if function.value is torch.as_tensor and tx.f_code is rnn.pack_sequence.__code__:
            lengths = _constants(args[0])  # sizes of the sequences, which may be symbols
            args = args if lengths is None else [ConstantVariable.create(tuple(lengths)), *args[1:]]
        return in_graph(function, tx, args, kwargs)

    def of_tensors(function: Any, tx: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        counts = function.fn is operator.getitem and tx.f_code in _COUNTS_SEQUENCES and _constant(args[1]) == 0
        batch = _batch_of(args[0]) if counts else None
        return built_in(function, tx, args, kwargs) if batch is None else ConstantVariable.create(batch)

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(SkipFunctionVariable, "call_function", skipped))
        patches.enter_context(mock.patch.object(TorchInGraphFunctionVariable, "call_function", called))
        patches.enter_context(mock.patch.object(BuiltinVariable, "_handle_insert_op_in_graph", of_tensors))
        yield


def is_packed(arguments: Sequence[Any]) -> bool:
    """Whether a call of one of torch's recurrent functions is of packed sequences, by its arguments or Dynamo's."""
    return len(arguments) > 3 and isinstance(arguments[3], (list, tuple, ListVariable, TupleVariable))


def _bound(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Dynamo's variables, by the names of the parameters."""
    signature = inspect.signature(function)
    bound = signature.bind(*args, **kwargs)
    given = {name: variable.realize() for name, variable in bound.arguments.items()}
    defaults = {name: each.default for name, each in signature.parameters.items() if name not in given}
    given |= {name: ConstantVariable.create(default) for name, default in defaults.items()}
    return {name: given[name] for name in signature.parameters}


def _pack(tx: Any, given: dict[str, Any]) -> Any:
    """`pack_padded_sequence`; None where eager raises."""
    lengths, constants = given["lengths"], _constants(given["lengths"])
    if constants is None and lengths.is_tensor() and not isinstance(lengths, NumpyNdarrayVariable):
        sizes = known_integers(lengths.as_proxy().node, _rows_and_steps, _says_rows_and_steps)
    else:
        sizes = None if constants is None else (sum(constants), max(constants, default=0))
    padded = _example(given["input"])
    if sizes is None:
        _break("pack_padded_sequence", lengths)
    if padded is None or padded.dim() < 2 or not padded.numel():
        return None
    rows, steps = sizes
    batch_first = given["batch_first"].as_python_constant()
    batch, most = padded.shape[:2] if batch_first else reversed(padded.shape[:2])
    if not 0 < steps <= most or (lengths.is_tensor() and tuple(_example(lengths).shape) != (batch,)):  # type: ignore[union-attr]
        return None
    if constants is not None:
        given["lengths"] = _traced(tx, _as_tensor, [ConstantVariable.create(tuple(constants))])
    numbers = [ConstantVariable.create(rows), ConstantVariable.create(steps)]
    return _traced(tx, _pack_padded_sequence, [*given.values(), *numbers])


def _pad(tx: Any, given: dict[str, Any]) -> Any:
    """`pad_packed_sequence`."""
    batch_sizes = given["sequence"].var_getattr(tx, "batch_sizes").realize()
    batch = _batch_of(batch_sizes) if batch_sizes.is_tensor() else None
    if batch is None:
        _break("pad_packed_sequence", batch_sizes)
    return _traced(tx, _pad_packed_sequence, [*given.values(), ConstantVariable.create(batch)])


_CAPTURED: dict[Any, Callable[[Any, dict[str, Any]], Any]] = {
    rnn.pack_padded_sequence: _pack,
    rnn.pad_packed_sequence: _pad,
}


def _break(what: str, lengths: Any) -> NoReturn:
    unimplemented(
        gb_type=f"{what}: how long the sequences are is not known while the model is captured",
        context=str(lengths),
        explanation="It follows from more than one input, or from what is no integer.",
        hints=["Give the model the lengths as a tensor or a list, or packed sequences."],
    )


def _traced(tx: Any, function: Any, arguments: list[Any]) -> Any:
    return UserFunctionVariable(function).call_function(tx, arguments, {})


def _example(variable: Any) -> Tensor | None:
    example = variable.as_proxy().node.meta.get("example_value") if variable.is_tensor() else None
    return example if isinstance(example, Tensor) else None


def _constants(lengths: Any) -> list[int] | None:
    """The numbers of a list; of those that may change, the capture is for what they are now."""
    if not isinstance(lengths, (ListVariable, TupleVariable)):
        return None
    items = [item.realize() for item in lengths.items]
    found = [each.evaluate_expr() if isinstance(each, SymNodeVariable) else _constant(each) for each in items]
    return [int(number) for number in found] if all(isinstance(number, int) for number in found) else None


def _constant(variable: Any) -> Any:
    return variable.as_python_constant() if variable.is_python_constant() else None


def _rows_and_steps(lengths: Tensor) -> tuple[int, int]:
    return int(lengths.sum()), int(lengths.max()) if lengths.numel() else 0


def _says_rows_and_steps(sizes: tuple[int, int]) -> str:
    return f"sum(lengths) == {sizes[0]} and max(lengths) == {sizes[1]} where sequences are packed"


def _batch_of(batch_sizes: Any) -> int | None:
    """How many sequences there are; None where that is not known."""
    node = batch_sizes.as_proxy().node
    if node.target is packing.batch_sizes:
        return int(node.args[0].meta["example_value"].shape[0])
    return known_integers(node, _first, lambda first: f"batch_sizes[0] == {first} of packed sequences")


def _first(batch_sizes: Tensor) -> int:
    return int(batch_sizes[0])


def _fix_batch_sizes(tx: Any, args: Sequence[Any]) -> None:
    """Where a layer must be traced step by step, let the capture be for the rows of each step.

    So it is in autocast, and where autograd adds up the gradients of weights that several calls have, step by step.
    """
    input, batch_sizes, _state, weights, _has_biases, num_layers, _dropout, _train, bidirectional = args
    example, node = _example(input.realize()), batch_sizes.realize().as_proxy().node
    if example is None or by_cudnn(example):
        return
    own = {weight.realize().as_proxy().node for weight in weights.items}
    others = [each for each in tx.output.graph.nodes if each.target in _RECURRENT and own & set(each.all_input_nodes)]
    autocast = torch.is_autocast_enabled(example.device.type)
    steps, both = node.meta["example_value"].shape[0], bidirectional.as_python_constant()
    if not autocast and not (others and are_few(steps, num_layers.as_python_constant(), bidirectional=both)):
        return
    for each in (node, *(call.args[1] for call in others if is_packed(call.args))):
        each.meta[BATCH_SIZES] = known_integers(each, _all, lambda sizes: f"batch_sizes == {list(sizes)}")
    if autocast and node.meta[BATCH_SIZES] is None:
        _break("sequences packed in autocast", batch_sizes)


def _all(batch_sizes: Tensor) -> tuple[int, ...]:
    return tuple(batch_sizes.tolist())


def _as_tensor(values: tuple[int, ...]) -> Tensor:
    return packing.host_integers(values)  # type: ignore[no-any-return]


def _pack_padded_sequence(
    input: Tensor, lengths: Tensor, batch_first: bool, enforce_sorted: bool, rows: int, steps: int
) -> rnn.PackedSequence:
    """As torch's own, of a known number of rows and steps."""
    lengths = lengths.to(dtype=torch.int64)
    sorted_indices = None
    if not enforce_sorted:
        lengths, sorted_indices = torch.sort(lengths, descending=True)
        sorted_indices = sorted_indices.to(input.device)
        input = input.index_select(0 if batch_first else 1, sorted_indices)
    batch_sizes = packing.batch_sizes(lengths, steps)
    return rnn.PackedSequence(packing.pack_rows(input, batch_sizes, rows, batch_first), batch_sizes, sorted_indices)


def _pad_packed_sequence(
    sequence: rnn.PackedSequence, batch_first: bool, padding_value: float, total_length: int | None, batch: int
) -> tuple[Tensor, Tensor]:
    """As torch's own, of a known number of sequences."""
    steps = sequence.batch_sizes.size(0)
    if total_length is not None:
        if total_length < steps:
            raise ValueError(
                "Expected total_length to be at least the length of the longest sequence in input, but got "
                f"total_length={total_length} and max sequence length being {steps}"
            )
        steps = total_length
    padded = packing.pad_rows(sequence.data, sequence.batch_sizes, batch, steps, batch_first, float(padding_value))
    lengths = packing.sequence_lengths(sequence.batch_sizes, batch)
    if sequence.unsorted_indices is None:
        return padded, lengths
    at = sequence.unsorted_indices
    return padded.index_select(0 if batch_first else 1, at), lengths[at.cpu()]
