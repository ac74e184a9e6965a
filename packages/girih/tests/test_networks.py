from typing import Any

import pytest

import girih_ssl
from girih.networks import make_objective
from girih.plans import load_plan
from girih_ssl.testing import make_batch

LABELS: Any = {"scans": {"channels": 1, "classes": ["organ"], "regions": [[1]], "activation": "sigmoid"}}


@pytest.mark.parametrize("name", ["mae", "multitalent"])
def test_an_objective_on_the_plans_pyramid_trains_all_of_it(name: str) -> None:
    config, patch = girih_ssl.objectives()[name](), (32, 32, 32)
    objective = make_objective(
        config, load_plan("demo"), patch_zyx=patch, in_channels=1, seed=0, neck="plan", datasets=LABELS
    )
    batch = make_batch(1, 1, patch)
    objective({**batch, "dataset": ["scans"]})["loss"].backward()
    assert [key for key, parameter in objective.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("deep", "levels"), [(True, {"0", "1", "2"}), (False, {"0"})])
def test_multitalent_supervises_the_pyramid_deep_or_finest_only(deep: bool, levels: set[str]) -> None:
    objective: Any = make_objective(
        girih_ssl.MultiTalentConfig(deep_supervision=deep),
        load_plan("demo"),
        patch_zyx=(32, 32, 32),
        in_channels=1,
        seed=0,
        neck="plan",
        datasets=LABELS,
    )
    assert set(objective.heads["scans"]) == levels
    assert set(objective.neck.out) == levels
