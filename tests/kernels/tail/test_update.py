"""Adam, AdamW and SGD against torch's own optimizers, and what makes them skip, scale and clip."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphopt import kernels
from tests.support.tensors import Adam, clones, random_tensors, same, same_bits, ulps


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}, {"weight_decay": 0.0}])
def test_adam_is_torchs_fused_one_bit_for_bit(kind: str, decoupled: bool, options: dict[str, object]) -> None:
    adam = Adam(random_tensors(0), decoupled, **options)
    scale = 2.0**12
    with kernels.use(kind):
        for seed in range(1, 6):
            gradients = random_tensors(seed)
            adam.eager_step(gradients)
            adam.step([g * scale for g in gradients], torch.tensor(1 / scale), None, torch.tensor(0.0))
    assert same(kind, adam.state(), adam.eager_state())


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch rounds there as it likes")
@pytest.mark.parametrize("decoupled", [True, False])
def test_own_adam_is_torchs_bit_for_bit_in_whole_vectors(decoupled: bool) -> None:
    adam = Adam([torch.randn(64, 16)], decoupled, amsgrad=True)
    with kernels.use("own"):
        for _ in range(5):
            gradient = torch.randn(64, 16)
            adam.eager_step([gradient * 0.3 * 0.7])
            adam.step([gradient], torch.tensor(0.3), torch.tensor(0.7))
    assert same_bits(adam.state(), adam.eager_state())


def test_without_any_scalar_nothing_is_divided(kind: str) -> None:
    adam = Adam(random_tensors(0))
    with kernels.use(kind):
        adam.eager_step(random_tensors(1))
        adam.step(random_tensors(1))
    assert same(kind, adam.state(), adam.eager_state())


def test_any_scale_and_factor_within_ulps_of_multiplying_twice(kind: str) -> None:
    """Own kernels multiply as eager does; stock ones divide once by the folded reciprocal: 3 roundings for 2."""
    inverse_scale, factor = torch.tensor(1 / 3000.0), torch.tensor(0.37)
    adam = Adam(random_tensors(0), eps=1e-3)
    with kernels.use(kind):
        for seed in range(1, 6):
            gradients = random_tensors(seed)
            adam.eager_step([g * inverse_scale * factor for g in gradients])
            adam.step(gradients, inverse_scale, factor)
    allowed = 1 if kind == "own" else 8
    assert max(ulps(a, b) for a, b in zip(adam.state(), adam.eager_state(), strict=True)) <= allowed


def test_clamps_between_unscaling_and_the_factor(kind: str) -> None:
    inverse_scale, factor = torch.tensor(0.125), torch.tensor(0.5)
    adam = Adam(random_tensors(0))
    with kernels.use(kind):
        gradients = random_tensors(1)
        adam.eager_step([(g * inverse_scale).clamp(-0.05, 0.05) * factor for g in gradients])
        adam.step(gradients, inverse_scale, factor, clip_value=0.05)
    assert same(kind, adam.state(), adam.eager_state())


@pytest.mark.parametrize("flag", [1.0, 2.0, float("inf")])
def test_a_skipped_step_changes_no_bit(kind: str, flag: float) -> None:
    adam = Adam(random_tensors(0), amsgrad=True)
    copies = random_tensors(7, torch.float16)
    with kernels.use(kind):
        adam.step(random_tensors(1))
        before = clones([*adam.state(), *copies])
        gradients = [torch.full_like(g, float("nan")) for g in random_tensors(2)]
        adam.step(gradients, torch.tensor(1.0), torch.tensor(0.5), torch.tensor(flag), copies=copies)
    assert same_bits(before, [*adam.state(), *copies])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_gradients_are_read_as_they_are_and_copies_take_the_result(kind: str, dtype: torch.dtype) -> None:
    adam = Adam(random_tensors(0))
    copies = [p.to(dtype) for p in adam.params]
    with kernels.use(kind):
        for seed in range(1, 4):
            gradients = random_tensors(seed, dtype)
            adam.eager_step([g.float() / 8 for g in gradients])
            adam.step(gradients, torch.tensor(0.125), None, torch.tensor(0.0), copies=copies)
    assert same(kind, adam.state(), adam.eager_state())
    assert same_bits(copies, [p.to(dtype) for p in adam.params])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_of_other_dtypes(kind: str, dtype: torch.dtype) -> None:
    adam = Adam([*random_tensors(0, dtype), *random_tensors(1)])
    gradients = [*random_tensors(2, dtype), *random_tensors(3)]
    with kernels.use(kind):
        adam.eager_step(gradients)
        adam.step(gradients)
    assert same(kind, adam.state(), adam.eager_state())


def strided(tensors: list[Tensor]) -> list[Tensor]:
    """The same elements in other memory orders: transposed, channels last, every second one, expanded."""
    transposed, column, image, *rest = tensors
    scattered = torch.zeros(column.numel() * 2)[::2].copy_(column)
    return [transposed.t().contiguous().t(), scattered, image.contiguous(memory_format=torch.channels_last), *rest]


@pytest.mark.parametrize("which", ["gradients", "parameters", "both"])
def test_any_layout(kind: str, which: str) -> None:
    """torch 2.13's fused kernels on CPU apply such gradients to the wrong parameters.

    They also round the last few elements in memory otherwise than the rest: elements in another order are
    within ulps, not bit for bit.
    """
    adam = Adam(strided(random_tensors(0)) if which != "gradients" else random_tensors(0))
    plain = Adam(random_tensors(0))
    with kernels.use(kind):
        for seed in range(1, 4):
            gradients = random_tensors(seed)
            plain.step(clones(gradients), torch.tensor(0.5))
            adam.step(gradients if which == "parameters" else strided(gradients), torch.tensor(0.5))
    allowed = 0 if which == "gradients" else 2
    assert max(ulps(a, b) for a, b in zip(adam.state(), plain.state(), strict=True)) <= allowed


def test_an_expanded_gradient(kind: str) -> None:
    """The gradient of a sum: one element, read everywhere; writing into it would be an error."""
    adam = Adam([torch.ones(4, 5)])
    with kernels.use(kind):
        adam.eager_step([torch.full((4, 5), 3.0)])
        adam.step([torch.tensor(6.0).expand(4, 5)], torch.tensor(0.5), clip_value=10.0)
    assert same(kind, adam.state(), adam.eager_state())


SGD = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.01, "nesterov": False, "maximize": False}


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.0}, {"dampening": 0.3}, {"nesterov": True}, {"maximize": True}, {"weight_decay": 0.0}],
)
def test_sgd_is_torchs_fused_one_bit_for_bit(kind: str, options: dict[str, float]) -> None:
    options = SGD | options
    params = random_tensors(0)
    eager_params = [p.requires_grad_() for p in clones(params)]
    eager = torch.optim.SGD(eager_params, fused=True, **options)
    buffers = [torch.full_like(p, float("nan")) for p in params] if options["momentum"] else []
    with kernels.use(kind):
        for seed in range(1, 5):
            for param, gradient in zip(eager_params, random_tensors(seed), strict=True):
                param.grad = gradient.clone()
            eager.step()
            gradients = random_tensors(seed, magnitude=4.0)
            kernels.sgd_(params, gradients, buffers, [], torch.tensor(0.25), first=seed == 1, **options)
    assert same(kind, params, eager_params)
    assert same(kind, buffers, [eager.state[p]["momentum_buffer"] for p in eager_params] if buffers else [])


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch rounds there as it likes")
@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"dampening": 0.3}, {"nesterov": True}])
def test_own_sgd_is_torchs_bit_for_bit_in_whole_vectors(options: dict[str, float]) -> None:
    results = {}
    for kind in ("own", "stock"):
        generator = torch.Generator().manual_seed(0)
        params, buffers = [torch.ones(64, 16)], [torch.zeros(64, 16)] if (SGD | options)["momentum"] else []
        with kernels.use(kind):
            for step in range(4):
                gradient = torch.randn(64, 16, generator=generator)
                kernels.sgd_(params, [gradient], buffers, [], first=step == 0, **SGD | options)
        results[kind] = [*params, *buffers]
    assert same_bits(results["own"], results["stock"])


def test_sgd_whose_first_step_overflows_never_reads_what_its_buffers_held(kind: str) -> None:
    """torch 2.13's fused SGD makes uninitialised buffers, skips, and reads them at the second step."""
    params, gradients = random_tensors(0), random_tensors(1)
    buffers = [torch.full_like(p, float("nan")) for p in params]
    with kernels.use(kind):
        infinite = [torch.full_like(p, float("inf")) for p in params]
        kernels.sgd_(params, infinite, buffers, [], None, None, torch.tensor(1.0), first=True, **SGD)
        assert same_bits(params, random_tensors(0))
        kernels.sgd_(params, clones(gradients), buffers, [], None, None, torch.tensor(0.0), first=True, **SGD)
    expected = [g + 0.01 * p for g, p in zip(gradients, random_tensors(0), strict=True)]
    assert max(ulps(a, b) for a, b in zip(buffers, expected, strict=True)) <= 1


def test_sgd_with_half_gradients_and_copies(kind: str) -> None:
    params = random_tensors(0)
    expected = [p - 0.1 * g.float() for p, g in zip(params, random_tensors(1, torch.float16), strict=True)]
    copies = [p.half() for p in params]
    options = SGD | {"momentum": 0.0, "weight_decay": 0.0}
    with kernels.use(kind):
        kernels.sgd_(params, random_tensors(1, torch.float16), [], copies, first=True, **options)
    assert max(ulps(a, b) for a, b in zip(params, expected, strict=True)) <= 1
    assert same_bits(copies, [p.half() for p in params])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sgd_of_half_parameters_updates_every_element(kind: str, dtype: torch.dtype) -> None:
    """torch 2.13's fused SGD on CPU leaves all but the last few as they were."""
    param, buffer = torch.ones(100, dtype=dtype), torch.full((100,), float("nan"), dtype=dtype)
    with kernels.use(kind):
        for first in (True, False):
            gradient = torch.ones(100, dtype=dtype)
            options = SGD | {"lr": 0.25, "momentum": 0.5, "weight_decay": 0.0}
            kernels.sgd_([param], [gradient], [buffer], [], first=first, **options)
    assert param.unique().tolist() == [1 - 0.25 - 0.375]
    assert buffer.unique().tolist() == [1.5]


def test_the_step_is_seen_by_autograd(kind: str) -> None:
    """A parameter saved for backward and then updated must not be used unnoticed."""
    params = [torch.randn(4, requires_grad=True)]
    loss = (params[0] * params[0]).sum()
    with kernels.use(kind):
        kernels.sgd_(params, [torch.ones(4)], [], [], first=True, **SGD | {"momentum": 0.0})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
