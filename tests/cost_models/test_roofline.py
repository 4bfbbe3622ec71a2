from __future__ import annotations

import json

import pytest
import torch

from graphopt.cost_models import COST_MODELS, device_speed
from graphopt.cost_models.roofline import flops, moved_bytes, roofline
from tests.support.machine import SLOW_CPU

CPU = torch.device("cpu")


def test_more_elements_take_more_time(node_of):
    sizes = [2**k for k in range(16, 25, 2)]
    times = [roofline([node_of(torch.exp, torch.empty(size))])[0].seconds for size in sizes]
    assert times == sorted(times)
    assert times[-1] > 20 * times[0]


def test_a_matmul_takes_the_time_of_its_flops(node_of):
    node = node_of(torch.mm, torch.empty(512, 1024), torch.empty(1024, 256))
    assert flops(node) == 2 * 512 * 1024 * 256
    expected = flops(node) / SLOW_CPU.matmul_flops_per_second["float32"]
    assert roofline([node])[0].seconds == pytest.approx(expected, rel=0.1, abs=2e-5)


def test_bytes_follow_strides(node_of):
    assert moved_bytes(node_of(torch.neg, torch.empty(100, 10))) == 2 * 4000
    assert moved_bytes(node_of(torch.neg, torch.empty(1, 10).expand(100, 10))) == 4000 + 40
    table, index = torch.empty(10_000, 16), torch.zeros(8, dtype=torch.int64)
    assert moved_bytes(node_of(torch.ops.aten.embedding.default, table, index)) < 2_000


def test_attention_on_cpu_is_counted(joint_nodes):
    query = torch.randn(1, 2, 64, 16, requires_grad=True)
    nodes = joint_nodes(lambda q: torch.nn.functional.scaled_dot_product_attention(q, q, q), query)
    forward, backward = (flops(node) for node in nodes if "scaled_dot_product" in str(node.target))
    assert forward == 2 * 2 * 2 * 64 * 64 * 16
    assert backward > 2 * forward


def test_meta_tensors_are_priced_without_running(node_of):
    node = node_of(torch.neg, torch.empty(10**9, device="meta"))
    for name in ("roofline", "auto"):
        (cost,) = COST_MODELS[name]([node])
        assert cost.seconds > 1e-3
        assert cost.workspace_bytes == 0
        assert cost.storage_bytes is None


def test_speed_is_measured_once_and_a_damaged_file_is_replaced(own_cache, monkeypatch):
    first = device_speed.device_speed(CPU)
    (path,) = own_cache.glob("device-speed-*.json")
    device_speed._device_speed.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(device_speed, "_benchmark", None)
        assert device_speed.device_speed(CPU) == first
    for damage in ("{", "[]", json.dumps({**json.loads(path.read_text()), "entries": {"op_seconds": -1}})):
        path.write_text(damage)
        device_speed._device_speed.cache_clear()
        assert device_speed.device_speed(CPU).bytes_per_second > 0
        assert json.loads(path.read_text())["entries"]["op_seconds"] > 0


def test_sizes_alone_cost_nothing():
    graph = torch.fx.Graph()
    node = graph.call_function(max, (1, 2))
    node.meta["val"] = 2
    assert roofline([node])[0].seconds == 0
