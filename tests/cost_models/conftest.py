"""Joint graphs to price, made as graphopt's own capture makes them."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import default_partition


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Each test measures for itself, and on one thread: on a busy machine more threads wait for each other."""
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "cache"
    torch.set_num_threads(threads)


def compute_nodes(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [
        node
        for node in graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and not node.target.is_view
    ]


@pytest.fixture
def joint_nodes():
    """(model, *inputs) -> compute nodes of its joint graph; `inside` is called on them in partition_fn."""

    def capture(model, *inputs, inside=None):
        found = []

        def partition(joint, joint_inputs, **keywords):
            keywords.pop("static_lifetime_input_indices", None)
            found.extend(compute_nodes(joint.graph))
            if inside is not None:
                inside(found)
            return default_partition(joint, joint_inputs, **keywords)

        def compiler(module, _inputs):
            return make_boxed_func(module)

        torch._dynamo.reset()
        backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler, partition_fn=partition)
        torch.compile(model, backend=backend, dynamic=False)(*inputs).sum().backward()
        return found

    return capture


@pytest.fixture
def node_of():
    """(function, *tensors) -> the one compute node of its graph, with fake tensors in `meta`."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def trace(function, *tensors):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = [mode.from_tensor(tensor) if tensor.device.type != "meta" else tensor for tensor in tensors]
            nodes = compute_nodes(make_fx(function)(*fakes).graph)
        assert len(nodes) == 1, nodes
        return nodes[0]

    return trace
