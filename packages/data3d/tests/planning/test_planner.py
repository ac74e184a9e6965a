"""Plans from made-up fingerprints: both rules, the memory budget, normalisation, and data that are hard to plan for."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.fingerprint import CaseFingerprint
from girih_data3d.planning import planner
from girih_data3d.planning.anchors import Anchors
from girih_data3d.planning.memory import training_bytes
from girih_data3d.planning.network import Network
from girih_data3d.planning.planner import FIXED, FIXED_SPACING
from girih_data3d.planning.quantiles import Intensities
from girih_data3d.planning.spacing import first_patch
from girih_data3d.planning.topology import LONG, SHORT, Topology, plan_topology
from girih_data3d.readable_json import readable_json

GIB = 2**30
LUNG = Intensities(
    count=1000, mean=-80.5, std=240.25, min=-1000, max=900, median=20, percentile_00_5=-900, percentile_99_5=250
)


def fingerprint(
    size: tuple[int, int, int] = (133, 512, 512),
    spacing: tuple[float, float, float] = (2.5, 0.7, 0.7),
    *,
    objects: int = 6,
    cases: int = 3,
    modality: str | None = "CT",
    kept: float = 1.0,
    intensities: tuple[Intensities | None, ...] = (LUNG,),
    largest: float = 15,
) -> d3.Fingerprint:
    rng = np.random.default_rng(0)
    found = []
    for number in range(cases):
        low = rng.uniform(0, 0.5, (objects, 3)) * size
        boxes = np.concatenate([low, low + rng.uniform(4, largest, (objects, 3)) / spacing], axis=1)
        whole = (round(size[0] / kept), size[1], size[2])
        rows = tuple(map(tuple, boxes.tolist()))
        found.append(
            CaseFingerprint(f"c{number}", modality, len(intensities), whole, size, spacing, rows, (0,) * objects)
        )
    return d3.Fingerprint("lungs", ("nodule",), tuple(found), intensities, "objects" if objects else "nonzero")


@pytest.fixture
def quick_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anchors that cost nothing, where they do not matter."""
    sides = ((4, 4, 4),) * 27
    monkeypatch.setattr(planner, "optimise_anchors", lambda sizes, levels, *, seed: Anchors(sides, 0.5, len(sizes)))


def test_the_default_rule_of_a_chest_ct() -> None:
    found = fingerprint()
    plan = d3.make_plan(found)
    assert plan.spacing_zyx_mm == (2.5, 0.7, 0.7)
    assert plan.normalisation == {"scheme": "ct", "clip": [-900, 250], "mean": [-80.5], "std": [240.25]}
    assert plan.encoder["kwargs"]["blocks"] == [1, 3, 4, 6, 6, 6]
    assert plan.encoder["kwargs"]["kernels"][0] == [1, 3, 3]
    assert plan.levels == (2, 3, 4, 5)
    assert plan.neck == {"class": "UFPN", "kwargs": {"out_channels": 128, "first_level": 2, "init": "he_fan_out"}}
    assert plan.dataset_fingerprint_sha256 == found.sha256
    assert len(plan.anchors["sizes_zyx_voxels"]) == 27
    assert 0.6 < plan.anchors["mean_best_iou"] < 1
    assert plan.objects_per_patch_p95 is not None
    assert plan.queries == max(12, int(np.ceil(3 * plan.objects_per_patch_p95)))
    assert plan == d3.make_plan(found)
    assert readable_json(plan.to_json()) == readable_json(d3.make_plan(found).to_json())
    assert d3.plan_from_json(json.loads(readable_json(plan.to_json())), "here").to_json() == plan.to_json()


def test_the_fixed_rule_keeps_everything_but_the_anchors() -> None:
    plan = d3.make_plan(fingerprint(), rule="fixed", encoder="retina_unet", memory_budget_bytes=GIB)
    assert plan.spacing_zyx_mm == FIXED_SPACING == (1, 1, 1)
    assert plan.patch_zyx == FIXED.patch_zyx == (128, 128, 128)
    assert plan.encoder["class"] == "PlainEncoder"
    assert plan.encoder["kwargs"]["convs"] == [2] * 6
    assert plan.normalisation == {"scheme": "zscore", "clip": None, "mean": None, "std": None}
    assert any("more than the budget of 1.0 GiB" in note for note in plan.notes)
    assert plan.anchors["mean_best_iou"] > 0.6
    ct = d3.make_plan(fingerprint(), rule="fixed", normalisation="ct").normalisation
    assert ct is not None
    assert ct["scheme"] == "ct"


@pytest.mark.usefixtures("quick_anchors")
@settings(max_examples=15)
@given(
    st.tuples(*[st.integers(12, 500)] * 3),
    st.tuples(*[st.floats(0.4, 5)] * 3),
    st.lists(st.floats(2.5, 80), min_size=2, max_size=4),
    st.sampled_from(["resenc_l", "retina_unet"]),
)
def test_a_larger_budget_never_gives_a_smaller_patch(
    size: tuple[int, int, int], spacing: tuple[float, float, float], budgets: list[float], encoder: Any
) -> None:
    found, before = fingerprint(size, spacing, objects=1), 0
    for budget in sorted(budgets):
        plan = d3.make_plan(found, encoder=encoder, memory_budget_bytes=int(budget * GIB))
        voxels = int(np.prod(plan.patch_zyx))
        assert voxels >= before
        before = voxels
        strides = np.prod(plan.encoder["kwargs"]["downsampling"], axis=0)
        assert (np.array(plan.patch_zyx) % strides == 0).all()
        topology = Topology(
            plan.patch_zyx, *(tuple(map(tuple, plan.encoder["kwargs"][k])) for k in ("downsampling", "kernels"))
        )
        assert training_bytes(Network(topology, encoder, 1, 1), 4, "no") <= budget * GIB


@pytest.mark.usefixtures("quick_anchors")
def test_batches_and_channels_and_classes_cost_memory() -> None:
    found = fingerprint((300, 300, 300), (1, 1, 1), objects=1)
    sizes = [np.prod(d3.make_plan(found, batch_size=batch).patch_zyx) for batch in (2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    one, many = (Network(FIXED, "resenc_l", c, k) for c, k in ((1, 1), (4, 9)))
    assert training_bytes(many, 2, "no") > training_bytes(one, 2, "no") > training_bytes(one, 2, "bf16")


@pytest.mark.usefixtures("quick_anchors")
@settings(max_examples=15)
@given(
    st.tuples(*[st.integers(40, 500)] * 3),
    st.tuples(*[st.floats(0.4, 5)] * 3),
    st.floats(4, 40),
    st.sampled_from(["resenc_l", "retina_unet"]),
    st.sampled_from(["no", "bf16"]),
)
def test_no_much_larger_patch_of_such_a_shape_fits(
    size: tuple[int, int, int], spacing: tuple[float, float, float], budget: float, encoder: Any, precision: Any
) -> None:
    found = fingerprint(size, spacing, objects=1)
    plan = d3.make_plan(found, encoder=encoder, precision=precision, memory_budget_bytes=int(budget * GIB))
    first = first_patch(spacing, size)
    coarse = int(np.argmax(spacing))
    sides = [[*range(16, n, 16), n] for n in (first[coarse], first[coarse - 1])]
    for along in sides[0]:
        for across in sides[1]:
            topology = plan_topology([along if axis == coarse else across for axis in range(3)], spacing)
            shares = np.array(topology.patch_zyx) / first
            lengthy = (shares > LONG * shares.min()) & (np.array(topology.patch_zyx) > SHORT)
            if np.prod(topology.patch_zyx) >= 1.3 * np.prod(plan.patch_zyx) and not lengthy.any():
                assert training_bytes(Network(topology, encoder, 1, 1), 4, precision) > budget * GIB


@pytest.mark.usefixtures("quick_anchors")
def test_the_precision_and_the_default_budget_are_said() -> None:
    plan = d3.make_plan(fingerprint())
    assert plan.memory_budget_bytes == 11_523_260_416 - 11 * 2**20
    assert "with --precision no takes about" in plan.notes[0]
    mixed = d3.make_plan(fingerprint(), precision="bf16")
    assert "with --precision bf16 takes about" in mixed.notes[0]
    assert np.prod(mixed.patch_zyx) > 1.5 * np.prod(plan.patch_zyx)


@pytest.mark.usefixtures("quick_anchors")
def test_notes_on_few_objects_unknown_modalities_and_grey_values() -> None:
    grey = replace(LUNG, min=0, max=255, percentile_00_5=2, percentile_99_5=250)
    plan = d3.make_plan(fingerprint(modality=None, intensities=(grey,)))
    assert "with fewer than 30 objects, the anchors may fit these and no others" in plan.notes
    assert "if these are CT, name the modality in dataset.json, or plan with --normalisation ct" in plan.notes
    chosen = d3.make_plan(fingerprint(objects=20, intensities=(grey,)), normalisation="ct").notes
    assert "the intensities lie in 0 to 255: these are no Hounsfield units of a CT" in chosen
    assert not any("fewer" in note or "name the modality" in note for note in chosen)
    assert not any("Hounsfield" in note for note in d3.make_plan(fingerprint(), normalisation="ct").notes)


@pytest.mark.parametrize("memory_gb", [float("nan"), float("inf"), -1.0, 0.0])
def test_memory_that_is_none_is_refused(memory_gb: float) -> None:
    with pytest.raises(ValueError, match=r"memory_gb is .*, wanted a number of GiB above 0"):
        planner.bytes_of(memory_gb)


@pytest.mark.usefixtures("quick_anchors")
@pytest.mark.parametrize(
    ("changes", "scheme", "note"),
    [
        ({"modality": "MR"}, "zscore", "z-scores, modality MR"),
        ({"modality": "MR", "kept": 0.5}, "zscore_mask", "z-scores, modality MR, inside the scan only"),
        ({"modality": None}, "zscore", "z-scores, modality unknown"),
        ({"modality": "CT", "kept": 0.5}, "ct", None),
        ({"modality": "ct"}, "ct", None),
        ({"intensities": (None,)}, "zscore", "no range to clip a CT to"),
        ({"intensities": (replace(LUNG, percentile_00_5=5, percentile_99_5=5, std=0),)}, "zscore", "no range"),
    ],
)
def test_normalisation_goes_by_the_modality(changes: dict[str, Any], scheme: str, note: str | None) -> None:
    plan = d3.make_plan(fingerprint(**changes))
    assert plan.normalisation is not None
    assert plan.normalisation["scheme"] == scheme
    assert note is None or any(note in line for line in plan.notes)
    assert plan.prepare_spec().record == plan.normalisation


@pytest.mark.usefixtures("quick_anchors")
def test_mixed_modalities_and_two_channels() -> None:
    found = fingerprint()
    mixed = replace(found, cases=(*found.cases, replace(found.cases[0], case_id="x", modality="MR")))
    plan = d3.make_plan(mixed)
    assert plan.modalities == ("CT", "MR")
    assert plan.normalisation is not None
    assert plan.normalisation["scheme"] == "zscore"
    two = d3.make_plan(fingerprint(intensities=(LUNG, replace(LUNG, percentile_99_5=800, mean=1, std=2))))
    assert two.normalisation == {"scheme": "ct", "clip": [-900, 800], "mean": [-80.5, 1], "std": [240.25, 2]}
    assert any("one window for all channels" in note for note in two.notes)


def test_a_dataset_without_objects_gets_the_anchors_of_the_start() -> None:
    plan = d3.make_plan(fingerprint(objects=0))
    assert plan.anchors["sizes_zyx_voxels"][0] == [4, 4, 4]
    assert plan.anchors["mean_best_iou"] is None
    assert (plan.objects_per_patch_p95, plan.queries) == (None, None)
    assert any(note.startswith("no object in the dataset: the anchors") for note in plan.notes)
    assert any("moments are those of all voxels" in note for note in plan.notes)


@pytest.mark.usefixtures("quick_anchors")
def test_objects_larger_than_the_patch_are_noted() -> None:
    plan = d3.make_plan(fingerprint((300, 300, 300), (1, 1, 1), largest=250), encoder="resenc_l")
    assert any("are larger than the patch: a second detector at twice the voxel size" in note for note in plan.notes)


@pytest.mark.usefixtures("quick_anchors")
def test_one_case_with_one_object_and_thin_scans() -> None:
    plan = d3.make_plan(fingerprint((3, 256, 256), (5.0, 1, 1), cases=1, objects=1))
    assert plan.patch_zyx[0] == 3
    assert [step[0] for step in plan.encoder["kwargs"]["downsampling"]] == [1] * len(plan.encoder["kwargs"]["blocks"])


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"size": (5, 6, 7)}, {}, r"the median scan has 5 x 6 x 7 voxels at \(2.5, 0.7, 0.7\) mm: too small"),
        ({}, {"memory_budget_bytes": GIB // 2}, r"the memory is 536870912 bytes: the smallest patch, \(.*\), takes"),
        ({}, {"batch_size": 0}, "batch_size is 0, wanted 1 or more"),
        (
            {"intensities": (None,)},
            {"normalisation": "ct"},
            "normalisation is 'ct', but the intensities measured have no",
        ),
    ],
)
def test_what_cannot_be_planned_is_said(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        d3.make_plan(fingerprint(**changes), **options)
