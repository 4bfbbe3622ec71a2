"""Calls of torch, written down as a graph while they are made on tensors without memory.

What depends on the model's inputs or weights is recorded. All else is known, and computed at once: shapes, masks and
positions end up as numbers and constants.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.lines import NODE

#: What is known may be this large; more is no shape or mask, but a file that wants to fill the memory.
MOST_CONSTANT_BYTES = 2**30
#: Of so many numbers, or times so many, nothing too large is made at once.
_FEW = 2**16
#: Functions of tensors that make none.
_READS = ("tolist", "item", "__get__", "numpy", "equal")


class Recorder(TorchFunctionMode):
    """A graph in the making; `root` holds what its nodes read: parameters, buffers and layers."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root = root
        self.graph = fx.Graph()
        #: The node of the file that is being run, counted from 1.
        self.position = 1
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._nodes: dict[int, fx.Node] = {}
        self._constants: dict[int, fx.Node] = {}
        self._held: list[Any] = []  # ids stay unique as long as what they name is there

    def placeholder(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An input of the graph."""
        with self._fake:
            made = torch.empty(shape, dtype=dtype)
        return self._track(made, self.graph.placeholder(name))

    def attribute(self, target: str, like: Tensor) -> Tensor:
        """A parameter or buffer of `root`, read in front of all else."""
        with self.graph.inserting_before(self._first()):
            return self._track(self._copy(like), self.graph.get_attr(target))

    def layer(self, target: str, module: nn.Module, *inputs: Any) -> Any:
        """Record a call of `module`, which becomes a part of `root`, in training and in evaluation."""
        with torch._C.DisableTorchFunction(), self._fake, torch.no_grad():
            result = _in_fake(module, self._fake)(*inputs)
        put(self.root, target, module)
        arguments = pytree.tree_map(self._argument, inputs)
        return self._results(result, self.graph.call_module(target, arguments))

    def is_parameter(self, value: Tensor) -> bool:
        """Whether a value is a parameter as it is."""
        node = self._nodes.get(id(value))
        return node is not None and node.op == "get_attr"

    def output(self, values: Sequence[Any]) -> None:
        """End the graph."""
        self.graph.output(tuple(self._argument(value) for value in values))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs))
        with torch._C.DisableTorchFunction(), torch.no_grad():
            if not any(isinstance(leaf, FakeTensor) for leaf in leaves):
                self._check_size(func, args, kwargs, leaves)
                return func(*args, **kwargs)
            with self._fake:
                result = func(*args, **kwargs)
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)):
            return result  # sizes, dtypes and the like
        if isinstance(result, Tensor) and id(result) in self._nodes:
            return result  # contiguous() of what is contiguous
        arguments, keywords = pytree.tree_map(self._argument, (args, kwargs))
        name = getattr(func, "__name__", "")
        if name == "__getitem__":
            node = self.graph.call_function(operator.getitem, arguments, keywords)
        elif getattr(torch.Tensor, name, None) is func or getattr(func, "__module__", "") == "torch._tensor":
            node = self.graph.call_method(name, arguments, keywords)
        else:
            node = self.graph.call_function(func, arguments, keywords)
        return self._results(result, node)

    def _results(self, result: Any, node: fx.Node) -> Any:
        if isinstance(result, Tensor):
            return self._track(result, node)
        parts = [
            self._track(part, self.graph.call_function(operator.getitem, (node, number)))
            for number, part in enumerate(result)
        ]
        return tuple(parts)

    def _track(self, tensor: Tensor, node: fx.Node) -> Tensor:
        self._nodes[id(tensor)] = node
        node.meta["shape"] = tuple(tensor.shape)
        node.meta[NODE] = self.position
        self._held.append(tensor)
        return tensor

    def _argument(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        found = self._nodes.get(id(leaf)) or self._constants.get(id(leaf))
        if found is None:
            found = self._constants[id(leaf)] = self._constant(leaf.detach())
            self._held.append(leaf)
        return found

    def _constant(self, value: Tensor) -> fx.Node:
        """A buffer; of dimensions along which all is equal one part, which is expanded where it is read."""
        name, part = f"constant_{len(self._constants)}", value
        for dim, size in enumerate(value.shape):
            first = part.narrow(dim, 0, min(size, 1))
            if size > 1 and bool((part == first).all()):
                part = first
        count = part.numel()
        if (
            1 < count == max(part.shape, default=0)
            and part.dtype is torch.int64
            and torch.equal(part.reshape(-1), torch.arange(count))
        ):
            node = self.graph.call_function(torch.arange, (count,), {"device": self._device()})
            node = node if part.dim() == 1 else self.graph.call_method("reshape", (node, list(part.shape)))
        else:
            self.root.register_buffer(name, part.clone(), persistent=False)
            with self.graph.inserting_before(self._first()):
                node = self.graph.get_attr(name)
        if part.shape == value.shape:
            return node
        return self.graph.call_method("expand", (node, list(value.shape)))

    def _device(self) -> fx.Node | torch.device:
        """The device of the first input, as a node."""
        hole = next((node for node in self.graph.nodes if node.op in ("placeholder", "get_attr")), None)
        return self.graph.call_function(getattr, (hole, "device")) if hole is not None else torch.device("cpu")

    def _first(self) -> fx.Node:
        """The first node behind the placeholders and attributes."""
        root = self.graph._root
        return next((node for node in self.graph.nodes if node.op not in ("placeholder", "get_attr")), root)

    def _copy(self, like: Tensor) -> Tensor:
        return self._fake.from_tensor(like.detach(), static_shapes=True)

    def _check_size(self, func: Any, args: Any, kwargs: Any, leaves: Sequence[Any]) -> None:
        """Raise OnnxError where a constant would be too large; what is made of small ones is not looked at."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        numbers = [leaf for leaf in leaves if isinstance(leaf, (int, float))]
        few = all(tensor.numel() <= _FEW for tensor in tensors) and math.prod(abs(n) or 1 for n in numbers) <= _FEW
        if (tensors and few) or getattr(func, "__name__", "") in _READS:
            return
        with self._fake:
            made = func(*args, **kwargs)
        size = sum(leaf.numel() * leaf.element_size() for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor))
        if size > MOST_CONSTANT_BYTES:
            raise OnnxError(f"a constant of {size:,} bytes would be made, where {MOST_CONSTANT_BYTES:,} may be")


def put(root: nn.Module, target: str, thing: Any) -> None:
    """Set a parameter, buffer or module at a dotted name, with empty modules on the way to it."""
    *path, name = target.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(thing, nn.Parameter):
        root.register_parameter(name, thing)
    elif isinstance(thing, nn.Module):
        root.add_module(name, thing)
    else:
        root.register_buffer(name, thing)


def _in_fake(module: nn.Module, mode: FakeTensorMode) -> Callable[..., Any]:
    """The module's call with its buffers as they would be without memory: nothing is written into them."""
    buffers: dict[str, Tensor] = {name: mode.from_tensor(buffer) for name, buffer in module.named_buffers()}
    return lambda *inputs: torch.func.functional_call(module, buffers, inputs)
