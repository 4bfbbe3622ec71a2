"""Updates by blocks give the bits of one update, and end in an error where a transfer fails."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graphopt import kernels
from graphopt.base.errors import OffloadError, UsageError
from graphopt.device.elsewhere import holder_of
from graphopt.device.storages import unique_storage_bytes
from graphopt.kernels.streaming.state_file import StateFile

CPU = torch.device("cpu")
SHAPES = [(33, 70), (5,), (257,), (64, 64)]
ADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01, "eps": 1e-8, "maximize": False, "decoupled": True}
SGD = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.01, "nesterov": True, "maximize": False}


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    return [*found[:-1], found[-1].t()]


def on(store: StateFile, like: list[Tensor]) -> list[Tensor]:
    made = [store.new(each) for each in like]
    for target, source in zip(made, like, strict=True):
        target.copy_(source)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("block_elements", [64, 1024, 10**6])
def test_adam_has_the_bits_of_one_update(
    tmp_path: Path, dtype: torch.dtype, amsgrad: bool, block_elements: int
) -> None:
    store, seeds = StateFile(tmp_path), range(5)
    params, gradients, first, second, most = (tensors(seed, dtype) for seed in seeds)
    second, most = [t.square() for t in second], [t.square() for t in most] if amsgrad else []
    steps = [torch.tensor(3.0) for _ in params]
    ours = [p.clone() for p in params], on(store, first), on(store, second), on(store, most), [s.clone() for s in steps]
    options = {**ADAM, "amsgrad": amsgrad}
    scale = torch.tensor(0.5)
    kernels.adam_(params, [g.clone() for g in gradients], first, second, most, steps, [], scale, **options)
    blocks = {"block_elements": block_elements}
    kernels.stream_adam_(ours[0], [g.clone() for g in gradients], *ours[1:], [], scale, **options, **blocks)

    for found, wanted in zip(ours, (params, first, second, most, steps), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("first", [False, True])
def test_sgd_has_the_bits_of_one_update(tmp_path: Path, first: bool) -> None:
    store = StateFile(tmp_path)
    params, gradients, momenta = (tensors(seed) for seed in range(3))
    ours = [p.clone() for p in params], on(store, momenta)
    kernels.sgd_(params, gradients, momenta, [], **SGD, first=first)
    kernels.stream_sgd_(ours[0], gradients, ours[1], [], **SGD, first=first, block_elements=512)

    for found, wanted in zip(ours, (params, momenta), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_copies_follow_masters_and_an_overflow_changes_nothing(tmp_path: Path) -> None:
    store = StateFile(tmp_path)
    masters, gradients, momenta = (tensors(seed) for seed in range(3))
    copies = [p.bfloat16() for p in masters]
    state = on(store, momenta)
    before = [each.clone() for each in (*masters, *copies, *state)]
    inf, nothing = torch.tensor(2.0), torch.tensor(0.0)
    options: dict[str, Any] = {**SGD, "first": False, "block_elements": 512}
    kernels.stream_sgd_(masters, gradients, state, copies, None, None, inf, **options)
    assert all(torch.equal(a, b) for a, b in zip((*masters, *copies, *state), before, strict=True))

    kernels.stream_sgd_(masters, gradients, state, copies, None, None, nothing, **options)
    assert all(torch.equal(copy, master.bfloat16()) for copy, master in zip(copies, masters, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(masters, before, strict=False))


@pytest.mark.parametrize("fault", ["short", "no space", "broken", "cut"])
@pytest.mark.parametrize("after", [0, 3, 9])
def test_a_transfer_that_fails_ends_in_an_error_that_says_what_it_left(tmp_path: Path, fault: str, after: int) -> None:
    store = StateFile(tmp_path)
    params, gradients, momenta = (tensors(seed) for seed in range(3))
    state = on(store, momenta)
    store.lane.fails(fault, after)
    run = lambda: kernels.stream_sgd_(params, gradients, state, [], **SGD, first=False, block_elements=704)  # noqa: E731
    if fault == "short":  # what a system may do at any time, and no fault
        wanted = tensors(0)
        kernels.sgd_(wanted, gradients, momenta, [], **SGD, first=False)
        run()
        assert all(torch.equal(a, b) for a, b in zip(params, wanted, strict=True))
        return
    with pytest.raises(OffloadError, match="some parameters and their state are updated"):
        run()


def test_state_on_a_file_takes_no_memory_of_the_device_and_its_room_is_used_again(tmp_path: Path) -> None:
    store = StateFile(tmp_path)
    kept, gone = store.new(torch.ones(64, 64)), store.new(torch.ones(64, 64))
    gone.fill_(7.0)
    address = gone.data_ptr()
    assert unique_storage_bytes([kept, gone], CPU) == 0 and holder_of(gone) is store
    del gone
    gc.collect()
    again = store.new(torch.ones(64, 64))
    assert not again.any() and not kept.any()
    twos = torch.full((3,), 2.0)
    store.wait(store.write(again, 5, twos))
    assert again.flatten()[4:9].tolist() == [0.0, 2.0, 2.0, 2.0, 0.0]
    ordinary = torch.zeros(64, 64)
    assert holder_of(ordinary) is None and unique_storage_bytes([ordinary], CPU) == 64 * 64 * 4
    del again
    gc.collect()
    assert holder_of(torch.frombuffer(bytearray(8), dtype=torch.uint8)) is None and address


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file can be made"):
        StateFile(tmp_path / "missing")
