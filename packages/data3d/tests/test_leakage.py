"""Scans on both sides: known again by series and by content, in any file; unknown is not the same as none."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.index import table_of
from girih_data3d.leakage import Leak, LeakError, check_no_leak, find_leaks, find_leaks_within
from girih_data3d.open_files import OpenFiles
from girih_data3d.splits import Fold, Split

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.{}"


def store_of(name: str, cases: Sequence[dict[str, Any]]) -> d3.Store:
    """Return a store of nothing but an index: each case is {"case_ids", and what of it is not the default}."""
    default = {
        "modalities": "CT",
        "series_uids": None,
        "parts": None,
        "scan_sha256": ("00",),
        "checksums": 0,
        "contents": 0,
        "bytes": 0,
        "channels": 1,
        "shapes": [4, 4, 4],
        "spacings_mm": [1, 1, 1],
        "annotated": False,
        "instances": False,
        "semantic": False,
        "valid": False,
        "boxes": [],
        "labels": [],
    }
    rows = [default | {"patient_ids": case["case_ids"], "scan_sha256": (case["case_ids"],)} | case for case in cases]
    return d3.Store(Path(name), name, (), d3.PrepareSpec(), table_of(rows), OpenFiles())


def prepare(folder: Path, name: str, sources: Sequence[d3.CaseSource]) -> d3.Store:
    dataset = d3.Dataset(name, ("nodule",), tuple(sources))
    report = d3.prepare_many(dataset, folder, d3.PrepareSpec(target_zyx_mm=None), workers=0)
    assert not report.failed
    return d3.Store.open(folder)


def scan(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 400, (5, 6, 7)).astype(np.int16)


def test_luna16_lies_in_lidc(tmp_path: Path) -> None:
    """By series UID, though the files are of other types and each dataset gives its cases and patients own names."""
    images = []
    for number in range(3):
        images.append(tmp_path / f"{number}.nii.gz")
        d3.write_nifti(scan(number), images[-1], affine=np.diag([0.7, 0.7, 1.25, 1]))
    lidc = [
        d3.CaseSource(f"LIDC-IDRI-000{k}", (image,), patient_id=f"LIDC-IDRI-000{k}", series_uid=UID.format(k))
        for k, image in enumerate(images)
    ]
    resampled = tmp_path / "resampled.nii.gz"  # another content: only the UID can tell
    d3.write_nifti(scan(9), resampled, affine=np.eye(4))
    luna = d3.CaseSource(UID.format(1).replace(".", "_"), (resampled,), series_uid=UID.format(1))
    a, b = prepare(tmp_path / "luna", "luna16", [luna]), prepare(tmp_path / "lidc", "lidc-idri", lidc)
    report = find_leaks(a, b)
    assert report.leaks == (Leak(luna.case_id, "LIDC-IDRI-0001", "series", UID.format(1)),)
    assert report.unknown_a == report.unknown_b == ()
    assert [(leak.case_a, leak.case_b) for leak in find_leaks(b, a).leaks] == [("LIDC-IDRI-0001", luna.case_id)]
    with pytest.raises(
        LeakError, match=r"luna16.* and lidc-idri.*: 1 leaks \(1 by the same series\)\n  1_3_6.* and LIDC"
    ):
        check_no_leak(a, b)
    check_no_leak(a, b.select(["LIDC-IDRI-0000", "LIDC-IDRI-0002"]))


def test_msd_lies_in_abdomenatlas(tmp_path: Path) -> None:
    """By content: saved again with other voxels, flipped, without gzip, one of two channels, in another place."""
    original, again = tmp_path / "pancreas_001.nii.gz", tmp_path / "ct.nii"
    d3.write_nifti(scan(1), original, affine=np.diag([0.8, 0.8, 2.5, 1]))
    flipped = scan(1)[:, ::-1, ::-1].astype(np.float32)
    turned = np.diag([-0.8, -0.8, 2.5, 1])
    turned[:3, 3] = 6 * 0.8, 5 * 0.8, 0
    d3.write_nifti(flipped, again, affine=turned)
    noisy = tmp_path / "other.nii.gz"
    d3.write_nifti(scan(1) + scan(2) // 10, noisy, affine=np.diag([0.8, 0.8, 2.5, 1]))
    msd = prepare(tmp_path / "msd", "msd-pancreas", [d3.CaseSource("pancreas_001", (original,))])
    atlas = prepare(
        tmp_path / "atlas",
        "abdomenatlas",
        [d3.CaseSource("BDMAP_00000001", (noisy,)), d3.CaseSource("BDMAP_00000002", (again, again))],
    )
    (leak,) = find_leaks(msd, atlas).leaks
    assert (leak.case_a, leak.case_b, leak.reason) == ("pancreas_001", "BDMAP_00000002", "content")
    assert leak.value == msd.index.scan_sha256[0][0]  # type: ignore[index]
    assert str(leak).startswith("pancreas_001 and BDMAP_00000002: the same voxels (")


def test_patients_count_within_one_name_space() -> None:
    a = store_of("one", [{"case_ids": "a", "patient_ids": "1"}])
    b = store_of("two", [{"case_ids": "b", "patient_ids": "1"}])
    assert find_leaks(a, b).leaks == ()
    assert find_leaks(a, b, same_patients=True).leaks == (Leak("a", "b", "patient", "1"),)
    assert find_leaks(a, replace(b, name="one")).leaks == (Leak("a", "b", "patient", "1"),)


def test_the_strongest_reason_and_every_case_that_leaks() -> None:
    both = {"series_uids": "1.2", "scan_sha256": ("ff", "ee"), "patient_ids": "p"}
    a = store_of("same", [{"case_ids": "a1", **both}, {"case_ids": "a2", "scan_sha256": ("ee",)}, {"case_ids": "a3"}])
    b = store_of(
        "same", [{"case_ids": "b0", "patient_ids": "p"}, {"case_ids": "b1", **both}, {"case_ids": "b2", **both}]
    )
    assert find_leaks(a, b).leaks == (
        Leak("a1", "b1", "series", "1.2"),
        Leak("a2", "b1", "content", "ee"),
        Leak("a1", "b0", "patient", "p"),
        Leak("a1", "b2", "series", "1.2"),
    )
    assert str(find_leaks(a, b)) == "4 leaks (2 by the same series, 1 by the same voxels, 1 by the same patient)"
    without = b.select(set(b) - {leak.case_b for leak in find_leaks(a, b).leaks})
    check_no_leak(a, without)
    left = a.select(set(a) - {leak.case_a for leak in find_leaks(a, b).leaks})
    check_no_leak(left, b)


def test_what_is_not_known_is_said() -> None:
    old = [{"case_ids": f"old{k}", "scan_sha256": None, "series_uids": f"1.{k}"} for k in range(3)]
    a, b = store_of("old", old), store_of("new", [{"case_ids": "new", "series_uids": "1.2"}])
    report = find_leaks(a, b)
    assert [leak.case_a for leak in report.leaks] == ["old2"]
    assert (report.unknown_a, report.unknown_b) == (("old0", "old1"), ())
    assert find_leaks(b, a).unknown_b == ("old0", "old1")
    c = store_of("c", [{"case_ids": "c"}])
    assert find_leaks(a, c).leaks == ()
    with pytest.raises(
        LeakError, match="0 leaks; not known of 3 cases of the first and 0 of the second, which an older"
    ):
        check_no_leak(a, c)
    check_no_leak(a, c, allow_unknown=True)
    with pytest.raises(LeakError):
        check_no_leak(a, b, allow_unknown=True)


def test_an_error_names_the_first_and_can_be_pickled() -> None:
    cases = [{"case_ids": f"{k:03}"} for k in range(20)]
    with pytest.raises(LeakError, match=r"20 leaks .*\n  000 and 000: [\s\S]*\n  and 15 more") as caught:
        check_no_leak(store_of("a", cases), store_of("b", cases))
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.report.leaks[0] == Leak("000", "000", "content", "000")


def test_nothing_in_common_and_nothing_at_all() -> None:
    a, b, none = store_of("a", [{"case_ids": "a"}]), store_of("b", [{"case_ids": "b"}]), store_of("none", [])
    for one, other in ((a, b), (a, none), (none, b), (none, none)):
        check_no_leak(one, other)
    assert str(find_leaks(a, b)) == "0 leaks"


def test_within_a_split() -> None:
    store = store_of(
        "toy",
        [
            {"case_ids": "a", "patient_ids": "1"},
            {"case_ids": "b", "scan_sha256": ("x",)},
            {"case_ids": "c", "patient_ids": "1"},
            {"case_ids": "d", "scan_sha256": ("x",)},
            {"case_ids": "e", "series_uids": "1.2"},
            {"case_ids": "f", "series_uids": "1.2", "scan_sha256": None},
            {"case_ids": "g", "scan_sha256": None},
        ],
    )
    clean = Split("toy", "r", 0, (Fold(("a", "c"), ("b", "d")), Fold(("b", "d"), ("a", "c"))), ("e", "f"))
    assert find_leaks_within(store, clean).leaks == ()
    bad = Split("toy", "r", 0, (Fold(("a", "b"), ("c", "e")), Fold(("b", "a"), ("g",))), ("d", "f"))
    report = find_leaks_within(store, bad)
    assert report.leaks == (
        Leak("a", "c", "patient", "1"),
        Leak("b", "d", "content", "x"),
        Leak("e", "f", "series", "1.2"),
    )
    assert report.unknown_a == ("g",)
    with pytest.raises(ValueError, match="train names case 'z', which dataset 'toy' with its 7 cases lacks"):
        find_leaks_within(store, Split("toy", "r", 0, (Fold(("z",), ()),)))
    with pytest.raises(ValueError, match="the split is of dataset 'other', found dataset 'toy'"):
        find_leaks_within(store, Split("other", "r", 0, (Fold(("a",), ()),)))


def test_a_hundred_thousand_cases() -> None:
    one = store_of("one", [{"case_ids": "x"}])

    def many(name: str, digests: Sequence[int]) -> d3.Store:
        count = len(digests)
        ids = tuple(f"{name}{k:06}" for k in range(count))
        index = replace(
            one.index.take([0] * count),
            case_ids=ids,
            patient_ids=ids,
            scan_sha256=tuple((f"{d:064x}",) for d in digests),
        )
        return replace(one, name=name, index=index)

    a, b, alike = many("a", range(100_000)), many("b", range(99_993, 110_000)), many("c", [0] * 20_000)
    assert [leak.case_b for leak in find_leaks(a, b).leaks] == [f"b{k:06}" for k in range(7)]
    assert len(find_leaks(alike, alike).leaks) == 2 * 20_000 - 1  # not its square
