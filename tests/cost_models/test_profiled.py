from __future__ import annotations

import json
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from graphopt.cost_models import COST_MODELS, scratch
from graphopt.cost_models import profiled as profiled_module
from graphopt.cost_models.profiled import ProfileLimits, profiled
from graphopt.cost_models.signature import signature


@torch.library.custom_op("graphopt_test::with_scratch", mutates_args=())
def with_scratch(x: torch.Tensor) -> torch.Tensor:
    first = torch.empty(1000, dtype=torch.uint8)
    out = torch.empty_like(x)
    second = torch.empty(5000, dtype=torch.uint8)
    del first, second
    return out


@with_scratch.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("graphopt_test::refuses", mutates_args=())
def refuses(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError(f"not with {x}")


@refuses.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    """One of each kind: convolution, batch norm, dropout, pooling, embedding, indexing, loss."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.embedding, self.head = nn.Embedding(11, 3), nn.Linear(8, 5)

    def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        scale = self.embedding(tokens).mean(1)[:, :, None, None]
        hidden = F.max_pool2d(F.relu(self.norm(self.convolution(image * scale))), 2)
        logits = self.head(F.dropout(hidden.mean((2, 3)), 0.3))
        return F.cross_entropy(logits[tokens[:, 0].clamp(0, 1)], tokens[:, 1].clamp(0, 4))


def net_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 16, 16), torch.randint(0, 11, (2, 6))


def test_every_op_of_a_net_runs_inside_a_partition_function(joint_nodes):
    torch.manual_seed(0)
    model, seen = Net(), []
    inputs = net_inputs()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()

    def price(nodes):
        with _disable_current_modes():
            before = torch.get_rng_state()
        seen.extend(profiled(nodes))
        with _disable_current_modes():
            assert torch.equal(torch.get_rng_state(), before)
            for name, tensor in state.items():
                assert torch.equal(model.state_dict()[name], tensor), name

    nodes = joint_nodes(model, *inputs, inside=price)
    assert len(seen) == len(nodes) > 30
    failed = [str(node.target) for node, cost in zip(nodes, seen, strict=True) if cost.storage_bytes is None]
    assert failed == []
    assert all(cost.seconds > 0 for cost in seen)
    assert any("dropout" in str(node.target) or "bernoulli" in str(node.target) for node in nodes)
    assert not torch.equal(torch.get_rng_state(), generator)  # the step itself did draw


def test_scratch_is_exact(node_of):
    (cost,) = profiled([node_of(torch.ops.graphopt_test.with_scratch.default, torch.empty(300))])
    assert cost.workspace_bytes == 6000
    assert cost.storage_bytes == (1200,)


def test_scratch_of_layer_norm_backward_is_what_a_run_shows(node_of):
    from graphopt.device.measure import peak_bytes

    x = torch.randn(64, 32)
    _, mean, deviation = torch.native_layer_norm(x, (32,), None, None, 1e-5)
    weight, bias = torch.ones(32), torch.zeros(32)

    def run(*tensors):
        g, x, mean, deviation, weight, bias = tensors
        return torch.ops.aten.native_layer_norm_backward(g, x, [32], mean, deviation, weight, bias, [True] * 3)

    tensors = (x, x, mean, deviation, weight, bias)
    node = node_of(lambda *t: run(*t)[0], *tensors)
    (cost,) = profiled([node])
    run(*tensors)
    assert cost.storage_bytes is not None
    assert cost.workspace_bytes == peak_bytes(lambda: run(*tensors), [], "cpu") - sum(cost.storage_bytes)


def test_second_call_runs_nothing(node_of, monkeypatch):
    nodes = [node_of(torch.exp, torch.empty(100)), node_of(torch.exp, torch.empty(100))]
    first = profiled(nodes)
    assert first[0] == first[1]
    monkeypatch.setattr(profiled_module, "time_call", None)
    assert profiled(nodes) == first
    profiled_module._TABLES.clear()  # a new process: from disk
    assert profiled(nodes) == first


@pytest.mark.parametrize("damage", ["", "{", "null", "[1]", '{"kind": "other"}', "\x00\xff", "entries"])
def test_damaged_files_are_rebuilt(own_cache, node_of, damage):
    node = node_of(torch.exp, torch.empty(100))
    profiled([node])
    (path,) = own_cache.glob("op-costs-*.json")
    if damage == "entries":
        data = json.loads(path.read_text())
        wrong = [None, [], [-1.0, 0, []], [1.0, -1, []], [1.0, 0, [True]], [float("inf"), 0, []], ["1", 0, []]]
        data["entries"] = {signature(node).key: wrong[-1]} | {str(i): entry for i, entry in enumerate(wrong)}
        damage = json.dumps(data)
    path.write_text(damage)
    profiled_module._TABLES.clear()
    (cost,) = profiled([node])
    assert cost.storage_bytes == (400,)
    profiled_module._TABLES.clear()
    assert profiled([node]) == [cost]
    assert len(json.loads(path.read_text())["entries"]) == 1


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, node_of):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert profiled([node_of(torch.exp, torch.empty(10))])[0].storage_bytes == (40,)


def test_two_processes_add_to_one_file(node_of):
    one, two = node_of(torch.exp, torch.empty(10)), node_of(torch.exp, torch.empty(20))
    profiled([one])
    profiled_module._TABLES.clear()
    table = profiled_module._table(torch.device("cpu"))
    table.costs.clear()  # as if read before the other process wrote
    profiled([two])
    profiled_module._TABLES.clear()
    assert len(profiled_module._table(torch.device("cpu")).costs) == 2


def test_ops_beyond_the_limits_are_estimated_and_not_kept(node_of):
    small, big = node_of(torch.exp, torch.empty(1000)), node_of(torch.exp, torch.empty(10**7))
    costs = profiled([small, big], ProfileLimits(memory_bytes=100_000))
    assert costs[0].storage_bytes == (4000,)
    assert costs[1].storage_bytes is None
    assert costs[1].seconds > 10 * costs[0].seconds
    other = node_of(torch.tanh, torch.empty(1000))
    start = time.monotonic()
    assert profiled([other], ProfileLimits(seconds=-1.0))[0].storage_bytes is None
    assert time.monotonic() - start < 5
    assert profiled([other])[0].storage_bytes == (4000,)


def test_an_op_that_fails_alone_is_estimated(node_of):
    failing = node_of(torch.ops.graphopt_test.refuses.default, torch.empty(300))
    (cost,) = profiled([failing])
    assert cost.seconds > 0
    assert cost.storage_bytes is None


def test_collectives_and_higher_order_ops_are_never_run():
    from torch._higher_order_ops.wrap import wrap

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(4)
    reduced = graph.call_function(torch.ops._c10d_functional.wait_tensor.default, (x,))
    wrapped = graph.call_function(wrap, (x,))
    for node in (reduced, wrapped):
        node.meta["val"] = torch.empty(4)
        assert signature(node) is None
    assert all(cost.storage_bytes is None for cost in profiled([reduced, wrapped]))


def test_layout_is_reproduced(node_of, monkeypatch):
    calls = []
    real = profiled_module.runnable

    def spy(call):
        calls.append(call)
        return real(call)

    monkeypatch.setattr(profiled_module, "runnable", spy)
    expanded, transposed = torch.empty(1, 8).expand(4, 8), torch.empty(8, 4).t()
    node = node_of(torch.add, expanded, transposed)
    (cost,) = profiled([node])
    assert [spec.stride for spec in calls[0].tensors] == [(0, 1), (1, 4)]
    assert calls[0].total_bytes == 32 + 128 + 128
    assert cost.storage_bytes == (128,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.int32, torch.bool])
def test_dtypes(node_of, dtype):
    (cost,) = profiled([node_of(torch.ops.aten.clone.default, torch.empty(5000, dtype=dtype))])
    assert cost.storage_bytes == (5000 * dtype.itemsize,)


def test_integer_division_is_not_by_zero(node_of):
    ints = torch.ones(10, dtype=torch.int64)
    (cost,) = profiled([node_of(lambda a, b: torch.div(a, b, rounding_mode="floor"), ints, ints)])
    assert cost.storage_bytes == (80,)


def test_mutation_touches_scratch_only(node_of):
    target, source = torch.zeros(10), torch.ones(10)
    node = node_of(torch.ops.aten.copy_.default, target, source)
    assert profiled([node])[0].workspace_bytes == 0
    assert target.sum() == 0


def test_modes_of_the_caller_do_not_leak_in(node_of):
    from torch._subclasses import FakeTensorMode

    node = node_of(torch.mm, torch.empty(8, 8), torch.empty(8, 8))
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16), torch.enable_grad(), torch.device("meta"):
        (cost,) = profiled([node])
    assert cost.storage_bytes == (256,)


def test_under_a_running_profiler_scratch_is_still_read(node_of):
    node = node_of(torch.ops.graphopt_test.with_scratch.default, torch.empty(301))
    with torch.profiler.profile() as session:
        kept = torch.ones(77)
        (cost,) = profiled([node])
    assert cost.workspace_bytes == 6000
    assert kept.numel() == 77
    assert any(event.key == "aten::ones" for event in session.key_averages())


def test_auto_is_profiled_on_this_machine(node_of):
    assert COST_MODELS["auto"]([node_of(torch.exp, torch.empty(10))])[0].storage_bytes == (40,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_scratch_and_time(node_of):
    node = node_of(torch.mm, torch.empty(2048, 2048, device="cuda"), torch.empty(2048, 2048, device="cuda"))
    state = torch.cuda.get_rng_state()
    (cost,) = profiled([node])
    assert cost.storage_bytes == (2048 * 2048 * 4,)
    assert 0 < cost.seconds < 0.1
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert scratch.scratch_bytes([signature(node)], torch.device("cuda"))


def test_boolean_index_shifts_the_dimensions_of_the_others(node_of):
    table, mask = torch.randn(3, 3, 2), torch.ones(3, 3, dtype=torch.bool)
    index = torch.zeros(9, dtype=torch.int64)
    put = node_of(lambda t, m, i, v: t.index_put((m, i), v), table, mask, index, torch.randn(9))
    (cost,) = profiled([put])
    assert cost.storage_bytes == (72,)


def test_symbolic_sizes_are_those_of_the_capture():
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(x):
        return torch.cat([x.view(x.shape[0] * 2, -1), torch.ones(x.shape[0] * 2, 1)], 1)

    graph = make_fx(function, tracing_mode="symbolic")(torch.randn(4, 6)).graph
    nodes = [node for node in graph.nodes if "aten.cat" in str(node.target) or "aten.ones" in str(node.target)]
    assert [cost.storage_bytes for cost in profiled(nodes)] == [(32,), (8 * 4 * 4,)]
    assert all(cost.seconds > 0 for cost in COST_MODELS["roofline"](nodes))


def test_sizes_that_only_the_run_reveals_are_estimated():
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x: x.nonzero().float() + 1, tracing_mode="symbolic")(torch.ones(4, 4)).graph
    nodes = [node for node in graph.nodes if "aten.add" in str(node.target) or "aten.nonzero" in str(node.target)]
    assert len(nodes) == 2
    for name in ("profiled", "roofline"):
        assert all(cost.seconds > 0 for cost in COST_MODELS[name](nodes))


def test_costs_are_measured_anew_where_own_ops_are_another_version(own_cache, node_of, monkeypatch):
    node = node_of(torch.exp, torch.empty(64))
    profiled([node])
    before = set(own_cache.glob("op-costs-*"))
    monkeypatch.setattr(profiled_module, "_sources", lambda: "others")
    profiled([node])
    assert len(set(own_cache.glob("op-costs-*")) - before) == 1
