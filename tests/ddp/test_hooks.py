"""The hook of DDP: the same bits as the protocols in one process, whatever DDP does with its buckets."""

from __future__ import annotations

import copy
import gc
import io
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

import graphopt
from graphopt import kernels
from graphopt.base.errors import RankError, UsageError
from graphopt.compression.choose import Auto
from graphopt.compression.methods import DGC, QSGD, Compression, EightBit, HalfCast, PowerSGD, Threshold, TopK
from graphopt.compression.protocols import at_step, compressible, wire_bytes
from graphopt.ddp import ddp_step
from graphopt.ddp.auto_choice import TIMED_STEPS
from graphopt.ddp.ddp_compression import DdpCompression
from tests.support.lockstep import start, step
from tests.support.ranks import run_ranks
from tests.support.tensors import same_bits

METHODS: tuple[Compression, ...] = (
    HalfCast(),
    HalfCast(torch.bfloat16),
    EightBit(),
    QSGD(bits=4),
    TopK(0.05),
    Threshold(0.02),
    DGC(0.05, warmup_steps=2, max_norm=0.1),
    PowerSGD(2),
)
SOME = (EightBit(), TopK(0.05), PowerSGD(2))
#: A method that leaves nothing out: DDP itself.
WHOLE = TopK(1.0)
MANY_BUCKETS = 0.05  # MiB
STEPS = 4


class Small(nn.Module):
    """Matrices, a convolution in channels_last and biases; one layer is used where `deep` only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 48, 3).to(memory_format=torch.channels_last)
        self.first = nn.Linear(48 * 4, 96)
        self.deeper = nn.Linear(96, 96)
        self.last = nn.Linear(96, 20)

    def forward(self, images: Tensor, deep: bool = True) -> Tensor:
        hidden = self.first(self.conv(images).relu().flatten(1)).relu()
        return self.last(self.deeper(hidden).relu() if deep else hidden)


def _model() -> Small:
    torch.manual_seed(0)
    return Small()


def _batch(rank: int, index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * rank + index)
    return torch.randn(8, 3, 4, 4, generator=generator), torch.randint(20, (8,), generator=generator)


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    parameters = model.named_parameters()
    return {name.removeprefix("module."): p.grad.clone() for name, p in parameters if p.grad is not None}


def _backward(model: nn.Module, rank: int, index: int, scale: float = 1.0, **options: Any) -> dict[str, Tensor]:
    """The gradients of a step, which moves the parameters too."""
    images, labels = _batch(rank, index)
    model.zero_grad()
    (nn.functional.cross_entropy(model(images, **options), labels) * scale).backward()
    return _gradients(model)


def _moved(model: nn.Module, gradients: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter -= 0.05 * gradients[name.removeprefix("module.")]


def _hooked(method: Compression, **options: Any) -> tuple[nn.Module, DdpCompression]:
    model = DistributedDataParallel(_model(), **{"bucket_cap_mb": MANY_BUCKETS, **options})
    return model, graphopt.compress_ddp(model, method)


def _trained(method: Compression, **options: Any) -> dict[str, Tensor]:
    """The last gradients of a few steps."""
    model, _ = _hooked(method, **options)
    for index in range(STEPS):
        gradients = _backward(model, dist.get_rank(), index)
        _moved(model, gradients)
    return gradients


def _train_each(methods: tuple[Compression, ...], every: tuple[dict[str, Any], ...]) -> list[list[dict[str, Tensor]]]:
    return [[_trained(method, **options) for method in methods] for options in every]


def _expected(method: Compression, world: int, steps: int = STEPS) -> dict[str, Tensor]:
    """The last gradients, from all ranks' batches in one process."""
    model = _model()
    ranks = start(method, dict(model.named_parameters()), world)
    whole: list[dict[str, Tensor]] = [{} for _ in range(world)]
    zero = torch.zeros(())
    for index in range(steps):
        shares = [_backward(model, rank, index) for rank in range(world)]
        method_now, inverse_scale = at_step(method, index), 1 / world
        if isinstance(method, HalfCast):
            shares = [{name: gradient / world for name, gradient in share.items()} for share in shares]
            inverse_scale = 1.0
        if isinstance(method, DGC) and method.max_norm is not None:
            shares = [_clipped(share, method.max_norm, world) for share in shares]
        step(method_now, ranks, shares, draw=index, inverse_scale=inverse_scale)
        gradients = {name: sum(share[name] / world for share in shares) for name in shares[0]}
        if isinstance(method, DGC):
            small = [name for name in gradients if name not in ranks[0].gradients]
            for momenta, share in zip(whole, shares, strict=True):
                momenta |= {n: torch.add(share[n] / world, momenta.get(n, zero), alpha=method.momentum) for n in small}
            gradients |= {name: sum(momenta[name] for momenta in whole) for name in small}
        gradients |= ranks[0].gradients
        _moved(model, gradients)
    return gradients


def _clipped(share: dict[str, Tensor], max_norm: float, world: int) -> dict[str, Tensor]:
    norm = kernels.gradient_norm(list(share.values()), 2.0)[0] / world
    assert norm > max_norm / math.sqrt(world)
    return {name: gradient * (max_norm / math.sqrt(world) / (norm + 1e-6)) for name, gradient in share.items()}


def _same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return got.keys() == wanted.keys() and same_bits([got[name] for name in wanted], list(wanted.values()))


@pytest.fixture(autouse=True)
def _as_many_threads_as_ranks_have() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_two_ranks_get_the_bits_of_one_process() -> None:
    """With many buckets, with every method; PowerSGD among them, whose torch hook hangs here."""
    for (trained,) in run_ranks(2, _train_each, METHODS, ({},)):
        for method, got in zip(METHODS, trained, strict=True):
            assert _same(got, _expected(method, 2)), method


def _first_of_four(methods: tuple[Compression, ...]) -> list[dict[str, Tensor]]:
    return [_backward(_hooked(method)[0], dist.get_rank(), 0) for method in methods]


def test_four_ranks_get_the_bits_of_one_process() -> None:
    """Where no sum is left to the network, whose order is its own."""
    methods = (HalfCast(torch.bfloat16), EightBit(), QSGD(), TopK(0.05), DGC(0.05))
    ranks = run_ranks(4, _first_of_four, methods)
    for number, method in enumerate(methods):
        wanted = _expected(method, 4, steps=1)
        for rank in ranks:
            large = {n: g for n, g in rank[number].items() if compressible(method, tuple(g.shape))}
            assert _same(large, {name: wanted[name] for name in large}), method


def test_what_ddp_does_with_its_buckets_changes_nothing() -> None:
    """One bucket or many, rebuilt after the first step or not, of views or copies."""
    every = (
        {},
        {"bucket_cap_mb": 25},
        {"gradient_as_bucket_view": True},
        {"find_unused_parameters": True},
        {"static_graph": True},
    )
    for rank in run_ranks(2, _train_each, SOME, every):
        for options, trained in zip(every, rank, strict=True):
            for method, got, wanted in zip(SOME, trained, rank[0], strict=True):
                assert _same(got, wanted), (method, options)


def _sent_bytes() -> list[int]:
    hooked = [_hooked(method) for method in METHODS]
    for model, _ in hooked:
        _backward(model, dist.get_rank(), 0)
    return [compression.sent_bytes for _, compression in hooked]


def test_as_many_bytes_are_sent_as_said() -> None:
    shapes = [tuple(parameter.shape) for parameter in _model().parameters()]
    said = [wire_bytes(at_step(method, 0), shapes, 2) for method in METHODS]
    assert run_ranks(2, _sent_bytes) == [said, said]


def _halves() -> list[dict[str, Tensor]]:
    theirs = DistributedDataParallel(_model(), bucket_cap_mb=MANY_BUCKETS)
    theirs.register_comm_hook(None, fp16_compress_hook)
    mine, _ = _hooked(HalfCast())
    return [_backward(model, dist.get_rank(), 0, scale=1024.0) for model in (mine, theirs)]


def test_fp16_is_torchs_own_hook() -> None:
    for mine, theirs in run_ranks(2, _halves):
        assert _same(mine, theirs)


def _like_ddp() -> list[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
    """Gradients of DDP and of the hook that sends everything, in ways of use that are not plain."""
    rank, found = dist.get_rank(), []
    for name, options in (("no_sync", {}), ("unused", {"find_unused_parameters": True}), ("bf16", {})):
        pair = []
        for compressed in (False, True):
            model = DistributedDataParallel(
                _model().bfloat16() if name == "bf16" else _model(), bucket_cap_mb=MANY_BUCKETS, **options
            )
            if compressed:
                graphopt.compress_ddp(model, WHOLE)
            for index in range(3):
                images, labels = _batch(rank, index)
                model.zero_grad()
                images = images.bfloat16() if name == "bf16" else images
                if name == "no_sync":
                    with model.no_sync():
                        nn.functional.cross_entropy(model(images), labels).backward()
                deep = name != "unused" or (index == 1 and rank == 0)
                nn.functional.cross_entropy(model(images, deep=deep), labels).backward()
            pair.append(_gradients(model))
        found.append((name, *pair))
    return found


def test_sending_everything_is_ddp_itself() -> None:
    """no_sync, parameters that one rank or none uses, half gradients (which DDP rounds once more)."""
    for rank in run_ranks(2, _like_ddp):
        for name, plain, compressed in rank:
            assert plain.keys() == compressed.keys()
            for parameter, wanted in plain.items():
                tolerance = 2**-7 if name == "bf16" else 0.0
                assert torch.allclose(compressed[parameter], wanted, rtol=tolerance, atol=0), (name, parameter)


def _recovering(method: Compression, bad_rank: int | None) -> dict[str, Tensor]:
    model, compression = _hooked(method)
    _backward(model, dist.get_rank(), 0)
    if bad_rank is not None:
        before = copy.deepcopy(compression.state_dict()["state"])
        gradients = _backward(model, dist.get_rank(), 1, scale=math.inf if dist.get_rank() == bad_rank else 1.0)
        after = compression.state_dict()["state"]
        assert all(gradient.isnan().all() for gradient in gradients.values())
        assert all(same_bits(list(before[n].values()), list(after[n].values())) for n in before)
        assert set(before) == set(after)
    return _backward(model, dist.get_rank(), 2)


def test_an_overflow_on_one_rank_skips_and_poisons_nothing() -> None:
    """After it all goes on as if the step had not been; QSGD draws other numbers then."""
    methods = (*(m for m in METHODS if not isinstance(m, QSGD | DGC)), QSGD(), DGC(0.05))
    for rank in run_ranks(2, _recovered, methods):
        for method, (recovered, unharmed) in zip(methods, rank, strict=True):
            assert all(gradient.isfinite().all() for gradient in recovered.values()), method
            assert isinstance(method, QSGD) or _same(recovered, unharmed), method


def _recovered(methods: tuple[Compression, ...]) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    return [(_recovering(method, 1), _recovering(method, None)) for method in methods]


def _scaled(methods: tuple[Compression, ...]) -> list[tuple[Any, ...]]:
    """(scale at the end, gradients and state) with and without a scale that moves in every step."""
    found = []
    for method in methods:
        pair = []
        for enabled in (True, False):
            model = DistributedDataParallel(_model(), bucket_cap_mb=MANY_BUCKETS)
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1, enabled=enabled)
            compression = graphopt.compress_ddp(model, method, scaler=scaler)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            for index in range(3):
                images, labels = _batch(dist.get_rank(), index)
                optimizer.zero_grad()
                scaler.scale(nn.functional.cross_entropy(model(images), labels)).backward()
                scaler.step(optimizer)
                scaler.update()
            pair.append((scaler.get_scale(), _gradients(model), compression.state_dict()["state"]))
        found.append(tuple(pair))
    return found


def test_what_is_kept_back_outlives_changes_of_the_loss_scale() -> None:
    for rank in run_ranks(2, _scaled, SOME):
        for (scale, gradients, state), (_, wanted, wanted_state) in rank:
            assert scale == 8192.0
            assert _same(gradients, wanted)
            assert all(same_bits(list(state[n].values()), list(kept.values())) for n, kept in wanted_state.items())


def _restarted(methods: tuple[Compression, ...]) -> list[bool]:
    """Whether a run that is saved, thrown away and loaded comes to what it would have come to."""
    results = []
    for method in methods:
        model, compression = _hooked(method)
        for index in range(2):
            _moved(model, _backward(model, dist.get_rank(), index))
        file = io.BytesIO()
        torch.save({"model": model.module.state_dict(), "compression": compression.state_dict()}, file)
        wanted = [_backward(model, dist.get_rank(), index) for index in (2, 3)][1]
        saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        model, compression = _hooked(method, bucket_cap_mb=25)
        model.module.load_state_dict(saved["model"])
        compression.load_state_dict(saved["compression"])
        got = [_backward(model, dist.get_rank(), index) for index in (2, 3)][1]
        results.append(_same(got, wanted))
    return results


def test_a_restart_goes_on_as_if_nothing_had_been() -> None:
    for rank in run_ranks(2, _restarted, METHODS):
        assert dict(zip(map(str, METHODS), rank, strict=True)) == dict.fromkeys(map(str, METHODS), True)


def _states(method: Compression, before: list[Any] | None) -> Any:
    model, compression = _hooked(method)
    if before is not None:
        compression.load_state_dict(before)
    else:
        _backward(model, dist.get_rank(), 0)
    return compression.state_dict()


def _refusals(before: list[Any]) -> list[str]:
    _, compression = _hooked(TopK(0.05))
    with pytest.raises(UsageError) as other_world:
        compression.load_state_dict({**before[0], "world": 3})
    with pytest.raises(UsageError) as missing:
        compression.load_state_dict(before[1:])
    with pytest.raises(UsageError) as other_method:
        compression.load_state_dict({**before[0], "method": "QSGD()"})
    with pytest.raises(UsageError) as other_method_as_data:
        compression.load_state_dict({**before[0], "method": {"method": "QSGD", "bits": 4, "seed": 0}})
    with pytest.raises(UsageError) as other_model:
        compression.load_state_dict({**before[0], "state": {"x": {"residual": torch.zeros(3)}}})
    with pytest.raises(UsageError) as empty:
        compression.load_state_dict([])
    compression.load_state_dict({**before[dist.get_rank()], "method": "TopK(ratio=0.05)"})  # as it was saved once
    errors = (other_world, missing, other_method, other_method_as_data, other_model, empty)
    return [str(error.value) for error in errors]


def test_another_number_of_ranks_shares_out_what_was_kept_back() -> None:
    two = run_ranks(2, _states, TopK(0.05), None)
    for name, kept in two[0]["state"].items():
        total = two[0]["state"][name]["residual"] + two[1]["state"][name]["residual"]
        assert total.any() and kept.keys() == {"residual"}
    three = run_ranks(3, _states, TopK(0.05), two)
    assert [state["rank"] for state in three] == [0, 1, 2] and three[0]["steps"] == 1
    for name in two[0]["state"]:
        was, now = (sum(state["state"][name]["residual"].double() for state in states) for states in (two, three))
        assert torch.allclose(now, was, rtol=1e-6, atol=0)
    for world, missing, method, as_data, model, empty in run_ranks(2, _refusals, two):
        assert "of 3 ranks, and now there are 2" in world
        assert "given is of ranks [1]" in missing
        assert "of QSGD() cannot be loaded into TopK" in method
        assert "of QSGD(bits=4, seed=0) cannot be loaded into TopK" in as_data
        assert "empty" in empty
        assert "'x', which the model does not train" in model


def _misused() -> list[str]:
    model, compression = _hooked(TopK(0.05))
    with pytest.raises(UsageError) as twice:
        graphopt.compress_ddp(model, TopK(0.05))
    with pytest.raises(UsageError) as bare:
        graphopt.compress_ddp(_model(), TopK(0.05))  # type: ignore[arg-type]
    ddp_step.protocol_of = None  # in this process alone
    with pytest.raises(TypeError) as failing:
        _backward(model, dist.get_rank(), 0)
    assert compression.steps == 0
    assert all(gradient.isnan().all() for gradient in _gradients(model).values())
    sparse = DistributedDataParallel(nn.Embedding(10, 200, sparse=True))
    graphopt.compress_ddp(sparse, TopK(0.05))
    with pytest.raises((UsageError, RuntimeError)) as with_sparse:
        sparse(torch.tensor([1, 2])).sum().backward()
    return [str(error.value) for error in (twice, bare, failing, with_sparse)]


def test_mistakes_are_named_and_nothing_hangs() -> None:
    for twice, bare, failing, sparse in run_ranks(2, _misused):
        assert "has a communication hook already" in twice
        assert "not a Small" in bare
        assert "'NoneType' object is not callable" in failing
        assert "sparse gradients are not compressed" in sparse


def _left_alone(options: dict[str, Any]) -> str:
    model, compression = _hooked(TopK(0.05), **options)
    for index in range(3):  # until DDP itself has exchanged what its buckets are
        _backward(model, dist.get_rank(), index)
    if dist.get_rank() == 1:
        return ""  # and ends
    before = copy.deepcopy(compression.state_dict())
    with pytest.raises(RankError) as error:
        _backward(model, dist.get_rank(), 3)
    after = compression.state_dict()
    assert all(same_bits(list(before["state"][n].values()), list(kept.values())) for n, kept in after["state"].items())
    assert before["steps"] == after["steps"]
    return str(error.value)


@pytest.mark.fast(1)
@pytest.mark.parametrize("options", [{}, {"bucket_cap_mb": 25, "static_graph": True}])
def test_a_rank_that_ends_is_an_error_for_the_others_and_no_hang(options: dict[str, Any]) -> None:
    """A RankError that can be caught as one, with many buckets or one, and where DDP calls the hook at the end."""
    message, _ = run_ranks(2, _left_alone, options, timeout=120.0)
    assert "rank 0 lost the other 1 in the middle of a training step" in message


def _threads_after() -> tuple[int, int]:
    def ours() -> int:
        gc.collect()
        return sum(thread.name == "graphopt compression" for thread in threading.enumerate())

    model, compression = _hooked(TopK(0.05))
    _backward(model, dist.get_rank(), 0)
    before = ours()
    thread = next(thread for thread in threading.enumerate() if thread.name == "graphopt compression")
    del model, compression
    gc.collect()
    thread.join(10)
    return before, ours()


def test_the_thread_ends_with_its_model() -> None:
    assert run_ranks(2, _threads_after) == [(1, 0), (1, 0)]


def _disabled() -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    model, compression = _hooked(TopK(0.05))
    _backward(model, dist.get_rank(), 0)
    sent_bytes = compression.sent_bytes
    compression.disable()
    gradients = _backward(model, dist.get_rank(), 1)
    plain = DistributedDataParallel(_model())
    return gradients, _backward(plain, dist.get_rank(), 1), compression.sent_bytes - sent_bytes


def test_disabled_it_is_ddp_itself() -> None:
    for gradients, plain, more_bytes in run_ranks(2, _disabled):
        assert _same(gradients, plain) and more_bytes > 0


def _alone() -> bool:
    model, compression = _hooked(TopK(0.05))
    return _same(_backward(model, 0, 0), _backward(_model(), 0, 0)) and compression.state_dict()["state"] == {}


def test_one_process_alone_compresses_nothing() -> None:
    assert run_ranks(1, _alone) == [True]


def _chosen() -> tuple[list[int], tuple[str, ...], dict[str, Tensor], bool]:
    everything = Auto(candidates=(WHOLE, TopK(0.01)))
    model, compression = _hooked(everything, bucket_cap_mb=0.5)
    sent_bytes = []
    for index in range(2 * TIMED_STEPS + 4):
        gradients = _backward(model, dist.get_rank(), index)
        sent_bytes.append(compression.sent_bytes)
    state = compression.state_dict()
    _, another = _hooked(everything)
    another.load_state_dict(state)
    return sent_bytes, compression.reasons, gradients, another.state_dict().keys() == state.keys()


def test_auto_waits_for_the_final_buckets_and_says_what_it_chose() -> None:
    first, second = run_ranks(2, _chosen)
    (sent_bytes, reasons, gradients, is_loaded), (others, other_reasons, other_gradients, _) = first, second
    assert sent_bytes[0] == sent_bytes[1] and sent_bytes == others and is_loaded
    assert "2 ranks" in reasons[0] and any("TopK(ratio=0.01)" in reason for reason in reasons)
    assert reasons == other_reasons and _same(gradients, other_gradients)


def test_auto_is_what_it_stands_for() -> None:
    assert run_ranks(2, _asked) == [Auto()] * 2


def _asked() -> Any:
    method = graphopt.compress_ddp(DistributedDataParallel(_model()), "auto").method
    dist.barrier()  # a process that ends while the other one still connects breaks the new group
    return method
