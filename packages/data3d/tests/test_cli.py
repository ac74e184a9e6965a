"""The command line, end to end on small files."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_prepare_as_a_program(source: Path, prepared: d3.Store, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "girih_data3d.cli", "prepare", str(source), str(tmp_path / "out")]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}: 3 done, 0 skipped, 0 failed\n"
    lines = sorted(line.split(" ", 1)[1] for line in done.stderr.splitlines())
    assert [re.sub(r"\d:\d\d:\d\d", "t", line) for line in lines] == [
        f"{c}: done, t" for c in ("case0", "case1", "free")
    ]
    store = d3.Store.open(tmp_path / "out")
    assert store.index.contents.tolist() == prepared.index.contents.tolist()


def test_failures_are_listed_with_their_reasons(
    own_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_source / "0.nii.gz").write_bytes(b"hello")
    out = tmp_path / "out"
    code, text, progress = run(capsys, "prepare", own_source, out, "--workers", 0)
    assert code == 1
    assert text.startswith(f"{out}: 2 done, 0 skipped, 1 failed\n  case0: ScanError: {own_source / '0.nii.gz'}: ")
    assert progress.splitlines()[0].startswith("1/3 case0: failed, 0:00:0")
    assert run(capsys, "prepare", own_source, out, "--workers", 0, "--shard", "1/2")[:2] == (
        0,
        f"{out}: 0 done, 1 skipped, 0 failed\n",
    )


def test_options_become_the_spec(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ct = ("--normalisation", "ct", "--clip", -100, 400, "--mean", 90, "--std", 30, "--dtype", "float16")
    more = ("--method", "nnunet", "--compression", "zstd", "--no-crop", "--workers", 0, "--shard", "2/3")
    for spacing, target in ((("--keep-spacing",), None), (("--spacing-zyx-mm", 2, 3, 4), (2, 3, 4)), ((), (1, 1, 1))):
        out = tmp_path / str(target)
        assert run(capsys, "prepare", source, out, *spacing, *ct, *more)[0] == 0
        assert d3.Store.open(out).spec == d3.PrepareSpec(
            target_zyx_mm=target,
            method="nnunet",
            normalisation="ct",
            clip=(-100, 400),
            mean=(90,),
            std=(30,),
            dtype="float16",
            compression="zstd",
            crop=None,
        )


def test_terminal_gets_one_line_that_changes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, _, progress = run(capsys, "prepare", source, tmp_path / "out", "--workers", 0)
    shown = progress.removesuffix("\n").split("\r")
    assert [re.sub(r"\d:\d\d:\d\d", "t", line) for line in shown] == [
        "",
        *(f"{n}/3: {n} done, 0 skipped, 0 failed, t" for n in range(4)),
    ]


def test_interrupt_says_how_to_go_on(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("girih_data3d.cli.prepare_many", stop)
    code, _, error = run(capsys, "prepare", source, tmp_path / "out")
    assert (code, error) == (130, "girih-data3d: interrupted; the same command goes on where it was\n")


def test_info(prepared: d3.Store, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "info", prepared.root, "--json")
    found = json.loads(text)
    assert code == 0
    assert found["name"] == "toy"
    assert (found["cases"], found["annotated"], found["semantic"]) == (3, 2, 2)
    assert found["objects"] == {"small": 2, "large": 2}  # one small object of each case is to be ignored
    assert found["shape_zyx"]["largest"] == prepared.index.shapes.max(axis=0).tolist()
    assert found["bytes"] == sum(p.stat().st_size for p in prepared.root.glob("cases/**/*") if p.is_file())
    assert d3.PrepareSpec.from_json(found["spec"]) == prepared.spec
    text = run(capsys, "info", prepared.root)[1]
    assert "cases: 3\n" in text
    assert "objects:\n  small: 2\n  large: 2\n" in text


def test_info_of_a_case(prepared: d3.Store, capsys: pytest.CaptureFixture[str]) -> None:
    case = prepared["case0"]
    found = json.loads(run(capsys, "info", prepared.root, "case0", "--json")[1])
    assert found["shape_czyx"] == list(case.shape)
    assert found["affine"] == case.affine.tolist()
    assert [o["class"] for o in found["objects"]] == case.objects.labels.tolist()
    assert [o["ignore"] for o in found["objects"]] == [False, False, True]
    assert found["source"]["images"][0]["name"] == "0.nii.gz"
    assert set(found["files"]) == set(case.files)
    text = run(capsys, "info", prepared.root, "case0")[1]
    assert "case_id: case0\n" in text
    assert re.search(r"\n  class 1  ignore False  box_zyx \[.*\]  voxels \d+\n", text)


def test_verify(prepared: d3.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(prepared.root, tmp_path / "copy")
    assert run(capsys, "verify", root, "--level", "decode")[:2] == (
        0,
        f"{root}: 3 cases sound, 0 problems (level decode)\n",
    )
    shard = next((root / "cases").glob("*/case1.zarr/0/c/0/0/0/0"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert run(capsys, "verify", root)[0] == 0  # the size is right
    code, text, _ = run(capsys, "verify", root, "--level", "checksum")
    assert code == 1
    assert text.startswith(f"case1: {shard}: fails its checksum")
    assert text.endswith(f"\n{root}: 2 cases sound, 1 problems (level checksum)\n")


def test_export(source: Path, prepared: d3.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "export", prepared.root, "case0", tmp_path / "new", "--labels")
    names = ["case0_0.nii.gz", "case0_instances.nii.gz", "case0_semantic.nii.gz"]
    assert (code, text.splitlines()) == (0, [str(tmp_path / "new" / name) for name in names])
    case = prepared["case0"]
    image, instances, semantic = (nib.load(tmp_path / "new" / name) for name in names)
    for found in (image, instances, semantic):
        np.testing.assert_allclose(found.affine, case.affine, atol=1e-5)
    np.testing.assert_array_equal(image.get_fdata().T, case.to_xarray().values[0])
    np.testing.assert_array_equal(
        instances.get_fdata().T, case.read_label_patch("instances", (0, 0, 0), case.shape[1:])
    )
    np.testing.assert_array_equal(semantic.get_fdata().T, case.read_label_patch("semantic", (0, 0, 0), case.shape[1:]))
    run(capsys, "export", prepared.root, "case0", tmp_path / "image")
    assert [p.name for p in (tmp_path / "image").iterdir()] == names[:1]


def test_export_of_what_was_defaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = np.zeros((6, 7, 8), np.uint8)
    gone[2:4, 3, 5:] = 1
    d3.write_nifti(np.ones((6, 7, 8), np.float32), tmp_path / "a.nii", affine=np.eye(4))
    d3.write_nifti(gone, tmp_path / "gone.nii", affine=np.eye(4))
    source = d3.CaseSource("a", (tmp_path / "a.nii",), defaced=tmp_path / "gone.nii")
    d3.prepare_many(d3.Dataset("x", (), (source,)), tmp_path / "out", d3.PrepareSpec(), workers=0)
    assert run(capsys, "export", tmp_path / "out", "a", tmp_path / "new", "--labels")[0] == 0
    valid = nib.load(tmp_path / "new/a_valid.nii.gz").get_fdata().T
    np.testing.assert_array_equal(valid, 1 - gone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "{root}", "nobody"), "no case 'nobody'"),
        (("export", "{root}", "nobody", "{new}"), "no case 'nobody'"),
        (("info", "{new}"), "not a prepared dataset"),
        (("prepare", "{new}", "{new}"), "no such file or folder"),
        (("prepare", "{source}", "{new}", "--normalisation", "ct"), "scheme 'ct' needs clip, mean and std"),
        (("prepare", "{source}", "{new}", "--workers", "-1"), "workers is -1"),
        (("prepare", "{source}", "{root}", "--keep-spacing"), "prepared with spec_hash"),
    ],
)
def test_wrong_input(
    source: Path,
    prepared: d3.Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    filled = [a.format(root=prepared.root, source=source, new=tmp_path / "new") for a in arguments]
    code, text, error = run(capsys, *filled)
    assert (code, text) == (2, "")
    assert error.startswith("girih-data3d: ")
    assert message in error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "-1/2", "0/0", "1/2/3"])
def test_shards_that_there_are_not(shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["prepare", str(tmp_path), str(tmp_path), f"--shard={shard}"])
    assert caught.value.code == 2
    assert "wanted I/N" in capsys.readouterr().err
