"""`girih predict` on real files: models, formats, processes, broken cases."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from safetensors.torch import load_file, save_file

from girih.cli import main
from girih.commands.prepare import prepare
from girih.ensembles import load_ensemble
from girih.inference import Inference
from girih_data3d import PrepareSpec, Store
from girih_detectors.inference import Merging, collect, merge, restore

CPU = ("--device", "cpu")
RECORD = ".girih/predict.json"
pytestmark = pytest.mark.usefixtures("one_thread")


def girih_(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def boxes_of(out: Path, case_id: str) -> dict[str, Any]:
    return dict(json.loads((out / f"{case_id}.json").read_text()))


def said_by(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_several_models_are_merged_as_one_ensemble(runs: list[Path], store: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "boxes"
    assert girih_("predict", "--model", *runs, "--data", store, "--out", out, "--fast", *CPU) == 0
    ensemble, case = load_ensemble(runs), Store.open(store)["case1"]
    found = merge(
        collect(ensemble.detectors, case.lazy(), patch_zyx=(32, 32, 32), overlap=0.25, mirror=False, batch_size=8),
        case.shape[1:],
        Merging(),
    )
    wanted = restore(found, case.prepared, case_id="case1", classes=("ball",))
    source = boxes_of(out, "case1")["source"]
    assert source == boxes_of(alone, "case1")["source"]
    assert boxes_of(out, "case1") == {**wanted, "source": source}
    assert boxes_of(out, "case1") != boxes_of(alone, "case1")


def test_shards_make_what_one_process_makes_whenever_they_start(
    runs: list[Path], store: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "boxes"
    arguments = ("predict", "--model", runs[0], "--data", store, "--out", out, *CPU)
    assert girih_(*arguments, "--fast", "--shard", "1/2") == 0
    assert {path.stem for path in out.glob("*.json")} == {"case1"}
    assert girih_(*arguments, "--fast", "--shard", "1/2") == 2
    said = said_by(capsys)
    assert "share 1 of 2: 1 of 3 cases" in said
    assert "already holds 1 prediction; pass --resume" in said
    assert girih_(*arguments, "--no-mirror", "--shard", "0/2") == 2
    assert "overlap is 0.25, now 0.5" in said_by(capsys)
    assert girih_(*arguments, "--fast", "--shard", "0/2") == 0
    assert contents(out) == contents(alone)


def test_two_processes_finish_what_they_can_and_name_what_they_cannot(
    runs: list[Path], raw: Path, tmp_path: Path
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "broken.nii.gz").write_bytes((raw / "case0.nii.gz").read_bytes()[:5000])
    shutil.copy(raw / "case1.nii.gz", scans)
    arguments = ["predict", "--model", str(runs[0]), "--data", str(scans), *CPU, "--out"]
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "girih.cli", *arguments, str(tmp_path / "two"),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "share 0 of 2: 1 of 2 cases" in said
    assert "the only case failed: broken:" in said  # by the process that has waited for the other
    assert "broken.nii.gz: truncated" in said
    assert main([*arguments, str(tmp_path / "one")]) == 2
    assert sorted(contents(tmp_path / "one")) == [RECORD, "boxes.csv", "case1.json", "slicer/case1.mrk.json"]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_what_all_processes_have_to_say_is_said_once(store: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "girih.cli", "predict", "--model", str(tmp_path), "--data", str(store), "--out", str(tmp_path), *CPU,
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("it has no config.json") == 1


def write_dicom(folder: Path, image: SimpleITK.Image, *, modality: str = "CT") -> None:
    folder.mkdir()
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(image.GetSize()[2]):
        plane = image[:, :, k]
        place = image.TransformIndexToPhysicalPoint((0, 0, k))
        for tag, value in {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0018": f"1.2.3.{k + 1}", "0008|0060": modality,
            "0020|000d": "1.2.4", "0020|000e": "1.2.5", "0020|0013": str(k + 1),
            "0020|0032": "\\".join(map(str, place)), "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():  # fmt: skip
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{k:03}.dcm"))
        writer.Execute(plane)


def test_every_format_of_one_scan_gives_the_same_boxes(runs: list[Path], raw: Path, tmp_path: Path) -> None:
    scans, values = tmp_path / "scans", nibabel.load(raw / "case1.nii.gz").get_fdata()
    scans.mkdir()
    image = SimpleITK.GetImageFromArray(np.round(100 * values).astype(np.int16).transpose(2, 1, 0))
    image.SetSpacing((0.9, 0.9, 1.5))
    image.SetOrigin((-10.0, -20.0, 30.0))
    for name in ("nifti.nii.gz", "nrrd.nrrd", "meta.mha"):
        SimpleITK.WriteImage(image, scans / name)
    write_dicom(scans / "dicom", image)
    arguments = ("predict", "--model", runs[0], "--fast", *CPU)
    assert girih_(*arguments, "--data", scans, "--out", tmp_path / "all") == 0
    found = {name: boxes_of(tmp_path / "all", name) for name in ("nifti", "nrrd", "meta", "dicom")}
    for name, boxes in found.items():
        assert len(boxes["scores"]) > 0
        assert boxes["shape_zyx"] == [32, 36, 40]
        np.testing.assert_allclose(boxes["boxes_ras_mm"], found["nifti"]["boxes_ras_mm"], atol=1e-3, err_msg=name)
    for name, path in (("nrrd", scans / "nrrd.nrrd"), ("dicom", scans / "dicom")):  # one scan alone
        assert girih_(*arguments, "--data", path, "--out", tmp_path / name) == 0
        assert boxes_of(tmp_path / name, name) == found[name]


def write_bad_scans(folder: Path, raw: Path) -> None:
    good = nibabel.load(raw / "case1.nii.gz")
    nowhere = nibabel.Nifti1Image(np.asarray(good.dataobj), None, good.header)
    nowhere.header.set_sform(None, code=0)
    nowhere.header.set_qform(None, code=0)
    nibabel.save(nowhere, folder / "nowhere.nii.gz")
    (folder / "cut.nii.gz").write_bytes((raw / "case1.nii.gz").read_bytes()[:5000])
    nibabel.save(good.slicer[:9, :11, :7], folder / "small.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full((40, 40, 40), 3.0, np.float32), np.eye(4)), folder / "flat.nii.gz")
    cases = [{"case_id": name, "images": [f"{name}.nii.gz"]} for name in ("cut", "flat", "nowhere", "small")]
    cases.append({"case_id": "two", "images": ["small.nii.gz", "flat.nii.gz"]})
    manifest = {"schema": 1, "name": "bad", "classes": [], "modality": "ct", "cases": cases}
    (folder / "dataset.json").write_text(json.dumps(manifest))


def test_broken_cases_are_listed_and_the_others_done(
    runs: list[Path], raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "boxes"
    scans.mkdir()
    write_bad_scans(scans, raw)
    arguments = ("predict", "--model", runs[0], "--data", scans, "--out", out, "--no-mirror", *CPU)
    assert girih_(*arguments) == 2
    said = said_by(capsys)
    assert "3 of 5 cases failed, the others are done: cut: " in said
    assert "cut.nii.gz: truncated" in said
    assert "nowhere.nii.gz: sform_code and qform_code are 0" in said
    assert "two: has 2 channels, the model takes 1" in said
    assert {path.stem for path in out.glob("*.json")} == {"flat", "small"}
    assert boxes_of(out, "flat")["boxes"] == []  # nothing but air
    small = np.array(boxes_of(out, "small")["boxes"])  # far smaller than a patch
    assert len(small) > 0
    assert ((small > -1e-3) & (small < np.array([7, 11, 9] * 2) + 1e-3)).all()
    shutil.copy(raw / "case1.nii.gz", scans / "cut.nii.gz")
    assert girih_(*arguments, "--resume") == 2  # two are still broken
    assert "2 of 5 cases failed" in said_by(capsys)
    assert {path.stem for path in out.glob("*.json")} == {"cut", "flat", "small"}


def test_what_does_not_suit_the_model_is_found_before_the_first_tile(
    runs: list[Path], store: Path, raw: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("girih.inference.collect", lambda *_, **__: pytest.fail("a tile was looked at"))
    arguments = ("predict", "--model", runs[0], "--out", tmp_path / "boxes", *CPU)
    prepare(raw, tmp_path / "ct", PrepareSpec(normalisation="ct", clip=(0, 1), mean=(0,), std=(1,)), workers=0)
    assert girih_(*arguments, "--data", tmp_path / "ct") == 2
    assert "was prepared with normalisation 'ct', the training data of the model with 'zscore'" in said_by(capsys)
    assert not (tmp_path / "boxes").exists()
    mr = shutil.copytree(raw, tmp_path / "mr")
    (mr / "dataset.json").write_text((mr / "dataset.json").read_text().replace('"CT"', '"MR"'))
    prepare(mr, tmp_path / "prepared", PrepareSpec(), workers=0)
    for data in (mr, tmp_path / "prepared"):
        assert girih_(*arguments, "--data", data) == 2
        assert "case0: is of the modality 'MR', the model was trained on 'CT'" in said_by(capsys)
    write_dicom(tmp_path / "series", SimpleITK.Image(20, 20, 20, SimpleITK.sitkInt16), modality="MR")
    assert girih_(*arguments, "--data", tmp_path / "series") == 2
    assert "series: is of the modality 'MR', the model was trained on 'CT'" in said_by(capsys)
    assert not list((tmp_path / "boxes").glob("*.json"))


def test_storage_of_a_dataset_does_not_matter(runs: list[Path], raw: Path, alone: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "store", PrepareSpec(dtype="float32", compression="zstd"), workers=0)
    out = tmp_path / "boxes"
    assert girih_("predict", "--model", runs[0], "--data", tmp_path / "store", "--out", out, "--fast", *CPU) == 0
    found, wanted = boxes_of(out, "case1"), boxes_of(alone, "case1")
    np.testing.assert_allclose(found["scores"][:5], wanted["scores"][:5], atol=0.01)


def test_numbers_that_are_not_finite(
    runs: list[Path], store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    path = run / "checkpoints" / "step_000000001" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("class_head") and name.endswith("bias"))
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, path)
    out = tmp_path / "boxes"
    assert girih_("predict", "--model", run, "--data", store, "--out", out, "--fast", *CPU) == 2
    said = said_by(capsys)
    assert "all 3 cases failed: case0: " in said
    assert "case1: tiles starting at [(0, 0, 0)" in said
    assert "not finite" in said
    assert not list(out.glob("*.json"))


def test_a_damaged_case_of_a_dataset(
    runs: list[Path], store: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, out = shutil.copytree(store, tmp_path / "store"), tmp_path / "boxes"
    shard = next(path for path in copy.glob("cases/*/case0.zarr/0/c/**/*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255  # of the same size: found when its chunk is read
    shard.write_bytes(content)
    assert girih_("predict", "--model", runs[0], "--data", copy, "--out", out, "--fast", *CPU) == 2
    said = said_by(capsys)
    assert "1 of 3 cases failed, the others are done: case0: " in said
    assert {path.stem for path in out.glob("*.json")} == {"case1", "case2"}
    assert boxes_of(out, "case2") == boxes_of(alone, "case2")


def test_a_run_whose_settings_lack_something(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    for name in ("command", "plan", "in_channels", "classes", "prepare", "dataset_sha256", "settings"):
        (run / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != name}))
        with pytest.raises(ValueError, match=rf"config.json: {name}(\.segmentation)? is missing"):
            load_ensemble([run])
    for value, words in (({"colour": 1}, "unknown field 'colour'"), ({"method": []}, "method")):
        (run / "config.json").write_text(json.dumps(config | {"prepare": value}))
        with pytest.raises(ValueError, match=f"config.json: prepare: .*{words}"):
            load_ensemble([run])


def test_problems_of_the_table_hide_no_failed_case(
    runs: list[Path], raw: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "boxes"
    scans.mkdir()
    (scans / "notes.txt").write_text("")
    (scans / "gone.nii.gz").symlink_to("nowhere")
    shutil.copy(raw / "case1.nii.gz", scans)
    out.mkdir()
    (out / "boxes.csv").mkdir()
    assert girih_("predict", "--model", runs[0], "--data", scans, "--out", out, "--fast", *CPU) == 2
    said = said_by(capsys)
    assert "no scans, passed over: notes.txt" in said
    assert "1 of 2 cases failed, the others are done: gone: " in said
    assert "gone.nii.gz: not readable" in said
    assert "boxes.csv was not written: " in said


def test_a_case_that_needs_too_much_memory(runs: list[Path], store: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    calls = itertools.count()

    def first_needs_much(*arguments: Any, **options: Any) -> Any:
        return collect(*arguments, **options) if next(calls) else torch.empty(10**15)

    monkeypatch.setattr("girih.inference.collect", first_needs_much)
    assert girih_("predict", "--model", runs[0], "--data", store, "--out", tmp_path / "boxes", "--fast", *CPU) == 2
    said = said_by(capsys)
    assert "1 of 3 cases failed, the others are done: case0: cpu has too little memory" in said
    assert {path.stem for path in (tmp_path / "boxes").glob("*.json")} == {"case1", "case2"}


def test_half_precision_finds_the_same(runs: list[Path], store: Path, alone: Path, tmp_path: Path) -> None:
    arguments = ("--fast", *CPU, "--precision", "bf16", "--shard", "1/3")
    assert girih_("predict", "--model", runs[0], "--data", store, "--out", tmp_path / "boxes", *arguments) == 0
    found, wanted = boxes_of(tmp_path / "boxes", "case1"), boxes_of(alone, "case1")
    assert found["scores"] != wanted["scores"]
    np.testing.assert_allclose(found["scores"][:5], wanted["scores"][:5], atol=0.02)


def test_an_ensemble_of_one_model_twice_and_of_two_in_either_order(
    runs: list[Path], store: Path, alone: Path, tmp_path: Path
) -> None:
    def boxes(name: str, *models: Path) -> dict[str, Any]:
        arguments = ("--data", store, "--out", tmp_path / name, "--fast", "--shard", "1/3", *CPU)
        assert girih_("predict", "--model", *models, *arguments) == 0
        return boxes_of(tmp_path / name, "case1")

    twice, wanted = boxes("aa", runs[0], runs[0]), boxes_of(alone, "case1")
    np.testing.assert_allclose(twice["boxes"], wanted["boxes"], atol=1e-4)
    np.testing.assert_allclose(twice["scores"], wanted["scores"], atol=1e-6)
    one, other = boxes("ab", *runs), boxes("ba", *runs[::-1])
    np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-6)
    np.testing.assert_allclose(one["boxes"], other["boxes"], atol=1e-3)


MEMORY = """
import resource, sys
from pathlib import Path
from girih.cli import main
code = main(sys.argv[1:])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.long
def test_a_large_raw_ct_is_predicted_within_4_gib(runs: list[Path], tmp_path: Path) -> None:
    """512 x 512 x 600 at 1 mm, which is not resampled smaller; tiles of 128^3 where it is not air."""
    voxels = np.full((512, 512, 600), -1000, np.int16, order="F")
    voxels[100:300, 150:350, 200:400] = np.random.default_rng(0).normal(0, 100, (200,) * 3).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "ct.nii.gz")
    run = shutil.copytree(runs[0], tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["plan"]["patch_zyx"] = [128, 128, 128]
    (run / "config.json").write_text(json.dumps(config))
    arguments = ["predict", "--model", run, "--data", tmp_path / "ct.nii.gz", "--out", tmp_path / "boxes", "--fast"]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, arguments), *CPU, "--formats", "csv", "slicer", "nifti"],
        capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    code, peak_gib = done.stdout.split()[-2:]
    assert code == "0", done.stderr
    assert float(peak_gib) < 4
    print(f"\npeak {float(peak_gib):.2f} GiB")


def test_what_an_inference_resolves_to() -> None:
    looking = Inference(device="cpu").resolve()
    assert looking.record == {"mirror": True, "overlap": 0.5, "precision": "no"}
    assert Inference(device="cpu", fast=True).resolve().record == {"mirror": False, "overlap": 0.25, "precision": "no"}
    assert Inference(device="cpu", fast=True, overlap=0.4).resolve().overlap == 0.4
