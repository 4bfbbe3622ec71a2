"""Problems from the literature, where they are present: `auto` beside the figures of others."""

from pathlib import Path

import pytest

from graphopt.planners import pareto_curve
from graphopt.planners.chain import chain_curve
from graphopt.planners.mincut import mincut_curve
from graphopt.planners.search import search_curve
from graphopt.planners.sqrt_n import sqrt_n_curve
from graphopt.planners.study.study import Study
from graphopt.problem.problem import load_problem
from graphopt.problem.schedule import check_schedule, simulate

INSTANCES = Path(__file__).parents[2].parent / "shared" / "instances"

#: Most seconds over those without recomputation, in percent, at a share of the peak. The figures are those of
#: Moccasin's proven optima (checkmate_*, random_layered_n100) and of DTR's simulation (dtr_*).
ANCHORS = [
    ("checkmate_VGG19_train", {0.9: 0.13, 0.8: 4.85}),
    ("checkmate_vgg_unet_train", {0.9: 1.17, 0.8: 1.99}),
    ("checkmate_segnet_train", {0.9: 0.12, 0.8: 0.22}),
    ("checkmate_fcn_8_vgg_train", {0.9: 0.04, 0.8: 0.15}),
    ("random_layered_n100", {0.9: 0.80, 0.8: 2.31}),
    ("dtr_resnet32", {0.8: 2.5, 0.6: 7.4, 0.4: 14.0, 0.3: 17.9}),
    ("dtr_transformer", {0.8: 2.0, 0.6: 4.4, 0.4: 9.1, 0.3: 12.4}),
    pytest.param("dtr_tv_densenet121", {0.8: 5.4, 0.6: 11.8, 0.4: 29.3, 0.3: 42.6}, marks=pytest.mark.slow),
    pytest.param("dtr_lstm", {0.8: 2.7, 0.6: 4.3, 0.4: 15.9, 0.3: 36.5}, marks=pytest.mark.slow),
]


@pytest.mark.fast(2)
@pytest.mark.parametrize(("name", "anchors"), ANCHORS)
def test_overhead_is_no_more_than_that_of_others(name: str, anchors: dict[float, float]) -> None:
    path = INSTANCES / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    problem = load_problem(path)
    curve = pareto_curve(problem)
    peak = simulate(problem, range(len(problem.ops))).peak_bytes
    for share, percent in anchors.items():
        fitting = [point for point in curve if point.peak_bytes <= share * peak]
        assert 100 * (fitting[-1].seconds / problem.seconds - 1) <= percent
        check_schedule(problem, fitting[-1].schedule)


MEMBERS = (chain_curve, mincut_curve, search_curve, sqrt_n_curve)


@pytest.mark.parametrize("name", ["checkmate_vgg_unet_train", "checkmate_MobileNet_train", "dtr_unet", "dtr_resnet32"])
def test_auto_fails_nowhere_and_is_beaten_nowhere(name: str) -> None:
    path = INSTANCES / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    problem = load_problem(path)
    study = Study(problem)
    curve = pareto_curve(study)
    for member in MEMBERS:
        for point in member(study):
            fitting = [p for p in curve if p.peak_bytes <= point.peak_bytes]
            assert fitting, f"{point.planner} reaches {point.peak_bytes} bytes"
            assert fitting[-1].seconds <= point.seconds * (1 + 1e-9)
