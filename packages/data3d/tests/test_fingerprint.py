"""Fingerprints of raw datasets: measured by hand on small ones, the same however the work is spread."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.fingerprint import sources_sha256
from girih_data3d.planning.quantiles import pool_samples, sample, values_per_case


@pytest.fixture(scope="module")
def found(source: Path) -> d3.Fingerprint:
    return d3.fingerprint(d3.read_manifest(source), workers=0)


def test_sizes_objects_and_classes(found: d3.Fingerprint) -> None:
    assert [case.case_id for case in found.cases] == ["case0", "case1", "free"]
    first, free = found.cases[0], found.cases[2]
    assert first.shape_zyx == first.cropped_zyx == (20, 60, 50)
    assert first.spacing_zyx_mm == pytest.approx((2.0, 0.79906, 0.79906), abs=1e-4)
    assert first.boxes == ((12, 5, 10, 14, 9, 20), (3, 10, 30, 6, 22, 40))  # 4 and 7; x is turned; 2 is to be ignored
    assert first.labels == (0, 1)
    assert free.boxes is None
    assert found.box_case.tolist() == [0, 0, 1, 1]
    assert found.summary()["objects"] == {"small": 2, "large": 2}
    assert found.summary()["modalities"] == ["CT"]
    np.testing.assert_allclose(
        found.boxes_at((1, 1, 1))[1, 3:] - found.boxes_at((1, 1, 1))[1, :3], (6, 9.589, 7.991), atol=1e-3
    )
    assert found.boxes_at((2.0, 1, 1))[0, 0] == pytest.approx(12)


def test_intensities_are_those_of_every_tenth_voxel_inside_objects(source: Path, found: d3.Fingerprint) -> None:
    values = []
    for number in range(2):
        scan = d3.read_scan(source / f"{number}.nii.gz")
        labels = d3.read_labels(source / f"{number}_objects.nii.gz", like=scan).values
        values.append(scan.values[0][(labels == 7) | (labels == 4)][::10])
    pooled = np.concatenate(values).astype(np.float64)
    (seen,) = found.intensities
    assert found.intensities_of == "objects"
    assert seen is not None
    assert seen.count == len(pooled) == 88
    low, median, high = np.percentile(pooled, (0.5, 50, 99.5))
    wanted = [pooled.mean(), pooled.std(), pooled.min(), pooled.max(), median, low, high]
    names = ("mean", "std", "min", "max", "median", "percentile_00_5", "percentile_99_5")
    np.testing.assert_allclose([getattr(seen, name) for name in names], wanted, rtol=1e-6)


def test_the_same_in_two_processes(source: Path, found: d3.Fingerprint) -> None:
    seen: list[tuple[str, str]] = []
    again = d3.fingerprint(d3.read_manifest(source), workers=2, on_progress=lambda *event: seen.append(event))
    assert again == found
    assert again.sha256 == found.sha256
    assert sorted(seen) == [("case0", "done"), ("case1", "done"), ("free", "done")]


def test_a_file_comes_back_and_is_refused_when_edited(found: d3.Fingerprint, tmp_path: Path) -> None:
    path = tmp_path / "fingerprint.json"
    d3.write_fingerprint(found, path)
    again = d3.read_fingerprint(path)
    assert again == found
    assert json.loads(path.read_text())["sha256"] == again.sha256
    path.write_text(path.read_text().replace('"toy"', '"boy"'))
    with pytest.raises(d3.ManifestError, match=r"fingerprint.json: sha256 is .* it was edited or damaged"):
        d3.read_fingerprint(path)
    path.write_text('{"schema": 1}')
    with pytest.raises(d3.ManifestError, match="key 'cases' is missing"):
        d3.read_fingerprint(path)


def scan_of(folder: Path, name: str, volume: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> Path:
    path = folder / f"{name}.nii.gz"
    d3.write_nifti(volume.astype(np.float32), path, affine=np.diag([*spacing[::-1], 1.0]))
    return path


def test_zero_borders_are_cut_but_never_an_object(tmp_path: Path) -> None:
    volume = np.zeros((10, 20, 30))
    volume[2:6, 4:12, 5:25] = 7
    path = scan_of(tmp_path, "a", volume)
    box = d3.ObjectLabel(0, box_zyx=(1, 4, 5, 3, 8, 9))
    source = d3.CaseSource("a", (path,), objects=(box,))
    (case,) = d3.fingerprint(d3.Dataset("d", ("c",), (source,)), workers=0).cases
    assert case.shape_zyx == (10, 20, 30)
    assert case.cropped_zyx == (5, 8, 20)
    assert case.boxes == ((0, 0, 0, 2, 4, 4),)


def test_objects_without_masks_count_with_what_they_enclose(tmp_path: Path) -> None:
    volume = np.full((20, 20, 20), 5.0)
    volume[4:8, 4:8, 4:8] = 100
    path = scan_of(tmp_path, "a", volume)
    labels = {
        "box": d3.ObjectLabel(0, box_zyx=(4, 4, 4, 8, 8, 8)),
        "sphere": d3.ObjectLabel(0, center_ras_mm=(5.5, 5.5, 5.5), diameter_mm=4),
    }
    counts = {}
    for name, label in labels.items():
        source = d3.CaseSource(name, (path,), objects=(label, d3.ObjectLabel(0, True, (10, 10, 10, 20, 20, 20))))
        (seen,) = d3.fingerprint(d3.Dataset("d", ("c",), (source,)), workers=0).intensities
        assert seen is not None
        assert (seen.min, seen.max) == (100, 100)
        counts[name] = seen.count
    assert counts == {"box": 7, "sphere": 4}  # of 64 and 32 voxels


def test_without_objects_all_voxels_count_that_are_not_zero(tmp_path: Path) -> None:
    volume = np.zeros((10, 10, 10))
    volume[:, :, 5:] = 3
    source = d3.CaseSource("a", (scan_of(tmp_path, "a", volume),), objects=())
    none = d3.fingerprint(d3.Dataset("d", ("c",), (source, replace(source, case_id="b", objects=None))), workers=0)
    assert none.intensities_of == "nonzero"
    assert none.intensities[0] is not None
    assert none.intensities[0].count == 100
    empty = d3.CaseSource("a", (scan_of(tmp_path, "zero", np.zeros((4, 4, 4))),))
    assert d3.fingerprint(d3.Dataset("d", ("c",), (empty,)), workers=0).intensities == (None,)


def test_broken_cases_are_listed_and_the_others_measured(own_source: Path) -> None:
    (own_source / "0.nii.gz").write_bytes(b"hello")
    dataset = d3.read_manifest(own_source)
    more = d3.CaseSource("two", (own_source / "free.nii.gz",) * 2)
    found = d3.fingerprint(replace(dataset, sources=(*dataset.sources, more)), workers=0)
    assert [case.case_id for case in found.cases] == ["case1", "free"]
    assert found.failed["case0"].startswith(f"ScanError: {own_source / '0.nii.gz'}")
    assert found.failed["two"] == "has 2 channels, 'case1' has 1"
    with pytest.raises(ValueError, match=r"no case of dataset 'toy' could be measured:\n  case0: ScanError"):
        d3.fingerprint(replace(dataset, sources=dataset.sources[:1]), workers=0)
    with pytest.raises(ValueError, match="dataset 'toy' has no case"):
        d3.fingerprint(replace(dataset, sources=()), workers=0)


def test_two_channels_are_measured_apart(tmp_path: Path) -> None:
    paths = tuple(scan_of(tmp_path, str(k), np.full((8, 8, 8), 1.0 + k)) for k in range(2))
    source = d3.CaseSource("a", paths, objects=(d3.ObjectLabel(0, box_zyx=(1, 1, 1, 4, 4, 4)),), modality="MR")
    one, two = d3.fingerprint(d3.Dataset("d", ("c",), (source,)), workers=0).intensities
    assert one is not None
    assert two is not None
    assert (one.mean, two.mean, one.std) == (1, 2, 0)


@given(st.lists(st.lists(st.integers(-1000, 3000), max_size=40), max_size=6))
def test_pooled_statistics_are_numpys_where_all_is_kept(cases: list[list[int]]) -> None:
    found = pool_samples([sample(np.array(values, np.float32), 40) for values in cases])
    pooled = np.array([value for values in cases for value in values], np.float64)
    if not len(pooled):
        assert found is None
        return
    assert found is not None
    low, median, high = np.percentile(pooled, (0.5, 50, 99.5))
    seen = (found.mean, found.std, found.median, found.percentile_00_5, found.percentile_99_5)
    np.testing.assert_allclose(seen, (pooled.mean(), pooled.std(), median, low, high), rtol=1e-5, atol=1e-3)


def test_percentiles_of_what_is_thinned_out_stay_close() -> None:
    rng = np.random.default_rng(0)
    cases = [rng.normal(k, 50 + k, 30_000).astype(np.float32) for k in range(4)] + [np.ones(10, np.float32)]
    found = pool_samples([sample(values, 1000) for values in cases])
    pooled = np.concatenate(cases).astype(np.float64)
    assert found is not None
    assert found.count == len(pooled)
    np.testing.assert_allclose(
        (found.mean, found.std, found.max), (pooled.mean(), pooled.std(), pooled.max()), rtol=1e-6
    )
    for name, percentile in (("percentile_00_5", 0.5), ("median", 50), ("percentile_99_5", 99.5)):
        rank = (pooled < getattr(found, name)).mean() * 100
        assert abs(rank - percentile) < 0.1
    assert values_per_case(1) == 100_000
    assert values_per_case(10**6) == 1_000


def test_voxels_that_are_not_zero_count_only_where_no_case_has_an_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scan_of(tmp_path, "a", np.ones((10, 10, 10)))
    with_object = d3.CaseSource("a", (path,), objects=(d3.ObjectLabel(0, box_zyx=(1, 1, 1, 4, 4, 4)),))
    without = replace(with_object, case_id="b", objects=None)
    looked_at: list[int] = []
    monkeypatch.setattr(
        sys.modules["girih_data3d.fingerprint"],
        "sample",
        lambda values, keep: (looked_at.append(len(values)), sample(values, keep))[1],
    )
    d3.fingerprint(d3.Dataset("d", ("c",), (with_object, without)), workers=0)
    assert looked_at == [3, 0]  # of 27 voxels every tenth


def test_sources_are_the_same_until_a_file_or_an_option_changes(own_source: Path) -> None:
    dataset = d3.read_manifest(own_source)
    before = sources_sha256(dataset)
    assert sources_sha256(d3.read_manifest(own_source)) == before
    assert sources_sha256(replace(dataset, sources=dataset.sources[:2])) != before
    changed = replace(dataset.sources[2], rescale=(2.0, 0.0))
    assert sources_sha256(replace(dataset, sources=(*dataset.sources[:2], changed))) != before
    (own_source / "free.nii.gz").unlink()
    assert sources_sha256(dataset) != before
