"""Bytes a parameter of each way to train in half precision, and where accumulation changes a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import graphopt
from benchmarks.studies.subjects import SUBJECTS
from graphopt.device.measure import peak_bytes

#: 1,050,624 parameters, and so few rows that activations take less than 0.01 bytes a parameter.
SIDE, LAYERS, ROWS = 512, 4, 2
FP16 = torch.float16


def basics() -> dict[str, Any]:
    """Both tables' rows."""
    return {"state": list(state_rows()), "accumulation": list(accumulation_rows())}


def state_rows() -> list[dict[str, Any]]:
    """For each way: bytes a parameter of weights, optimizer's state, what a step takes beside them, and in all."""
    scale = graphopt.ConstantLossScale(1024.0)
    masters = {"loss_scale": scale, "masters": True}
    return [
        _stepped("a loop, float32", loop=_plain_loop),
        _stepped("train_step, float32"),
        _stepped("train_step, float32, accumulate 2", accumulate=2),
        _stepped("train_step, float32, update_in_backward", update_in_backward=True),
        _stepped("train_step, float32, autocast fp16", autocast=FP16, loss_scale=scale),
        _stepped("a loop, fp16, float32 masters and gradients beside the half ones", FP16, _master_loop),
        _stepped("train_step, fp16, masters", FP16, **masters),
        _stepped("train_step, fp16, masters, accumulate 2", FP16, accumulate=2, **masters),
        _stepped("train_step, all in bf16", torch.bfloat16),
    ]


Loop = Callable[[nn.Module, torch.optim.Optimizer, Sequence[Tensor]], None]


def _stepped(name: str, dtype: torch.dtype = torch.float32, loop: Loop | None = None, **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(SIDE, SIDE) for _ in range(LAYERS)]).to(dtype)
    masters = [p.detach().float().requires_grad_() for p in model.parameters()] if loop is _master_loop else []
    optimizer = torch.optim.Adam(masters or model.parameters(), lr=1e-4)
    batch = torch.randn(2, ROWS, SIDE, dtype=dtype).unbind()
    step = None if loop else graphopt.train_step(model, nn.functional.mse_loss, optimizer, **options)

    def run() -> None:
        if step is not None:
            step(*batch)
        elif loop is not None:
            loop(model, optimizer, batch)

    run()
    weights = list(model.parameters())
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    state += [tensor for group in optimizer.param_groups for tensor in group["params"]]
    own = {id(weight) for weight in weights}
    kept = [tensor for tensor in _tensors(state, step) if id(tensor) not in own]
    sums = list(step.accumulators) if step else []
    peak = peak_bytes(run, [*weights, *kept, *sums, *batch], "cpu")
    count = sum(weight.numel() for weight in weights)
    figures = [_bytes(weights) / count, _bytes(kept) / count, peak / count]
    return {
        "way": name,
        "weights": round(figures[0], 2),
        "state": round(figures[1], 2),
        "beside": round(figures[2] - figures[0] - figures[1], 2),
        "peak": round(figures[2], 2),
    }


def _tensors(state: Sequence[Any], step: graphopt.TrainStep | None) -> list[Tensor]:
    """Each storage once: the optimizer's tensors, and the step's masters where it does not hold them."""
    masters = step.state_dict().get("masters", {}) if step else {}
    found = {item.data_ptr(): item for item in (*state, *masters.values()) if isinstance(item, Tensor) and item.numel()}
    return list(found.values())


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def _plain_loop(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Sequence[Tensor]) -> None:
    nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
    optimizer.step()
    optimizer.zero_grad()


def _master_loop(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Sequence[Tensor]) -> None:
    """Half gradients stay while float32 copies of them are stepped with: the mistake that costs 20 bytes."""
    nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
    masters = optimizer.param_groups[0]["params"]
    for master, parameter in zip(masters, model.parameters(), strict=True):
        assert parameter.grad is not None
        master.grad = parameter.grad.float()
    optimizer.step()
    with torch.no_grad():
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.copy_(master)
    optimizer.zero_grad()
    model.zero_grad()


def accumulation_rows() -> Iterator[dict[str, Any]]:
    """How far the first step's gradient in four micro-batches, or as named, is from that in one, over its length."""
    for name, what, fixed in (
        ("resnet", "four micro-batches", None),
        ("resnet", "four micro-batches, BatchNorm by fixed statistics", nn.BatchNorm2d),
        ("gpt", "four micro-batches", None),
        ("gpt", "one micro-batch, other draws of dropout", None),
        ("gpt", "four micro-batches, no dropout", nn.Dropout),
        ("translation", "four micro-batches by rows, no dropout", nn.Dropout),
        ("translation", "four micro-batches by tokens, no dropout", nn.Dropout),
        ("lstm", "four micro-batches", None),
    ):
        count, seed = (1, 1) if what.startswith("one") else (4, 0)
        weights = "tokens" if "tokens" in what else "rows"
        whole, other = _first_gradient(name, 1, fixed), _first_gradient(name, count, fixed, seed, weights)
        apart = float((whole - other).norm() / whole.norm())
        yield {"model": name, "the first step in": what, "gradient differs by": float(f"{apart:.2g}")}


def _first_gradient(
    name: str, accumulate: int, fixed: type[nn.Module] | None, seed: int = 0, weights: str = "rows"
) -> Tensor:
    """What one step of SGD at a rate of 1 takes off the parameters, in one vector; modules of a kind as in eval."""
    subject = SUBJECTS[name]()
    model = subject.build(0)
    for module in model.modules():
        if fixed is not None and isinstance(module, fixed):
            module.eval()
        if fixed is nn.Dropout and isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    batch = next(subject.batches(subject.rows))
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = graphopt.train_step(model, subject.loss_fn, optimizer, accumulate=accumulate, weights=weights)
    torch.manual_seed(seed)
    step(*batch)
    return before - nn.utils.parameters_to_vector(model.parameters()).detach()
