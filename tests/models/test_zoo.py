"""The zoo keeps its own promises: it is these models that everything else is tested on."""

import pytest
import torch

from tests.support.zoo import ANCHORS, ZOO, differences, step


@pytest.mark.parametrize("name", ZOO)
def test_a_step_is_finite_and_repeats_bitwise(name: str) -> None:
    case = ZOO[name]()
    first = step(case)
    assert torch.isfinite(first["loss"])
    assert all(torch.isfinite(t).all() for key, t in first.items() if key.startswith("grad"))
    assert differences(first, step(ZOO[name]())) == {}


@pytest.mark.parametrize("name", ZOO)
def test_every_parameter_that_is_used_and_not_frozen_gets_a_gradient(name: str) -> None:
    case = ZOO[name]()
    step(case)
    without = {k for k, p in case.model.named_parameters() if p.grad is None}
    expected = (
        {"frozen.weight", "frozen.bias", "unused.weight", "unused.bias"} if name == "shared_and_frozen" else set()
    )
    assert without - {"wav2vec2.masked_spec_embed"} == expected


@pytest.mark.parametrize("name", ANCHORS | ZOO)
def test_building_leaves_the_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    case = (ANCHORS | ZOO)[name]()
    assert torch.equal(before, torch.get_rng_state())
    assert case.model.training
