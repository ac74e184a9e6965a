"""The instance NIfTI: which voxels a box fills, where two readers find them, and at what cost."""

import itertools
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import girih_data3d
from girih.outputs import write_case
from girih.outputs.case_boxes import case_boxes
from girih.outputs.instances import instance_volume

CASES = runpy.run_path(str(Path(__file__).with_name("output_cases.py")))
detections, oblique = CASES["detections"], CASES["oblique"]
itk_corners_lps, SHAPE = CASES["itk_corners_lps"], CASES["SHAPE"]


def brute_force(made: dict, min_score: float = 0.0) -> np.ndarray:
    """Voxel by voxel: the best box whose half-open edges hold the voxel's centre."""
    volume = np.zeros(SHAPE, int)
    for index in np.ndindex(*SHAPE):
        best = -1.0
        for row, (box, score) in enumerate(zip(made["boxes"], made["scores"], strict=True)):
            inside = all(low <= i + 0.5 < high for i, low, high in zip(index, box[:3], box[3:], strict=True))
            if inside and score > best and score >= min_score:
                volume[index], best = row + 1, score
    return volume


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4), min_score=st.sampled_from([0.0, 0.5]))
def test_a_voxel_belongs_to_the_best_box_that_holds_its_centre(seed: int, n: int, min_score: float) -> None:
    rng = np.random.default_rng(seed)
    low = rng.integers(-4, 40, (n, 3)) / 2  # halves: edges and centres coincide often
    made = detections(np.concatenate([low, low + rng.integers(2, 30, (n, 3)) / 2], axis=1), rng.integers(0, 4, n) / 4)
    made |= {"boxes": np.round(made["boxes"], 6).tolist()}  # away with the rounding of restore
    centres = [np.arange(size) + 0.5 for size in SHAPE]
    held = [
        all(((low <= c) & (c < high)).any() for c, low, high in zip(centres, box[:3], box[3:], strict=True))
        for box in made["boxes"]
    ]
    for name in ("boxes", "boxes_ras_mm", "scores", "labels"):  # boxes that hold no centre: see the next test
        made[name] = list(itertools.compress(made[name], held))
    assert_array_equal(instance_volume(case_boxes(made, ""), min_score=min_score), brute_force(made, min_score))


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        ([3, 4, 5, 4, 5, 6], (slice(3, 4), slice(4, 5), slice(5, 6))),  # one voxel
        ([3.5, 4, 5, 5.5, 5, 6], (slice(3, 5), slice(4, 5), slice(5, 6))),  # centres 3.5 in, 5.5 out: half-open
        ([3.5 + 1e-12, 4, 5, 4.5 + 1e-12, 5, 6], (slice(3, 4), slice(4, 5), slice(5, 6))),  # 3.5 but for rounding
        ([3.6, 4.6, 5.6, 3.7, 4.7, 5.7], (slice(3, 4), slice(4, 5), slice(5, 6))),  # no centre: the voxel around it
        ([3.6, 2, 5, 4.2, 9, 6], (slice(3, 4), slice(2, 9), slice(5, 6))),  # thin along z only
        ([3, 4, 5, 3, 4, 5], (slice(3, 4), slice(4, 5), slice(5, 6))),  # a point
        ([-0.4, -9, 26, 0.2, 2, 40], (slice(0, 1), slice(0, 2), slice(26, 28))),  # over the border
        ([-0.4, 0, 28.1, -0.1, 1, 28.3], (slice(0, 1), slice(0, 1), slice(27, 28))),  # beside the grid: the nearest
    ],
)
def test_which_voxels_a_box_fills(box: list[float], wanted: tuple) -> None:
    made = detections([[0] * 6], [0.5]) | {"boxes": [box]}
    volume = instance_volume(case_boxes(made, ""))
    expected = np.zeros(SHAPE, np.int16)
    expected[wanted] = 1
    assert_array_equal(volume, expected)
    assert volume.dtype == np.int16


def test_many_boxes_are_numbered_beyond_int16() -> None:
    n = 2**15
    made = detections([[0, 0, 0, 1, 1, 1]], [0.5])
    made |= {name: made[name] * n for name in ("boxes", "boxes_ras_mm", "labels")}
    made |= {"scores": np.linspace(0, 1, n).tolist()}
    volume = instance_volume(case_boxes(made, ""))
    assert volume.dtype == np.int32
    assert volume.max() == n  # the last row has the highest score


def test_the_nifti_by_two_readers(tmp_path: Path) -> None:
    """nibabel and SimpleITK find row k's voxels at k + 1, where the source scan has them."""
    affine = oblique()
    girih_data3d.write_nifti(np.zeros(SHAPE, np.float32), tmp_path / "scan.nii.gz", affine=affine)
    boxes = [[2, 3, 4, 8, 9, 11], [5, 6, 8, 10, 12, 20]]  # they overlap; the first has the higher score
    write_case(tmp_path, detections(boxes, [0.9, 0.8], affine=affine), formats=["nifti"])
    by_nibabel = nibabel.load(tmp_path / "nifti/case.nii.gz")
    voxels = np.asarray(by_nibabel.dataobj).transpose(2, 1, 0)
    by_itk, scan = (
        SimpleITK.ReadImage(str(tmp_path / "nifti/case.nii.gz")),
        SimpleITK.ReadImage(str(tmp_path / "scan.nii.gz")),
    )
    expected = np.zeros(SHAPE)
    expected[5:10, 6:12, 8:20] = 2
    expected[2:8, 3:9, 4:11] = 1
    assert_array_equal(voxels, expected)
    assert_array_equal(SimpleITK.GetArrayFromImage(by_itk), expected)
    assert by_nibabel.get_data_dtype() == np.int16
    assert_allclose(by_nibabel.affine, affine, atol=1e-5)
    for name in ("GetSize", "GetOrigin", "GetDirection", "GetSpacing"):
        assert_allclose(getattr(by_itk, name)(), getattr(scan, name)(), atol=1e-6)
    seen = itk_corners_lps(by_itk, boxes[0]) * [-1, -1, 1]
    assert_allclose([*seen.min(axis=0), *seen.max(axis=0)], detections(boxes[:1], [1])["boxes_ras_mm"][0], atol=1e-3)


def test_memory_is_one_int16_volume(tmp_path: Path) -> None:
    """300 x 512 x 512 voxels, all filled, in a process of its own: 150 MiB and a little."""
    script = """
        import sys
        from pathlib import Path
        import numpy as np
        from girih.outputs import write_case

        def peak_mib():
            status = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

        shape = [300, 512, 512]
        row = [0, 0, 0, *shape]
        case = {"schema": "girih-detections/1", "case_id": "a", "classes": ["n"], "shape_zyx": shape, "space": "source",
                "affine": np.eye(4).tolist(), "boxes": [row], "boxes_ras_mm": [row], "scores": [0.5], "labels": [0]}
        before = peak_mib()
        write_case(Path(sys.argv[1]), case, formats=["nifti"])
        print(peak_mib() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    peak_mib = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 145 < peak_mib < 175
