import json
from pathlib import Path

import pytest
import torch

from girih_backbones import ResidualEncoder, UNetDecoder, make_stem, read_weights, save_weights
from girih_backbones.cli import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    encoder = ResidualEncoder(1, channels=(2, 4), blocks=(1, 2))
    stems = {"ct": encoder.stem, "mr": make_stem(encoder, 4)}
    neck = UNetDecoder(encoder.channels, encoder.strides)
    save_weights(
        tmp_path / "w.safetensors", encoder=encoder, neck=neck, stems=stems, patch_zyx=(8, 8, 8), objective="mae"
    )
    return tmp_path / "w.safetensors"


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that a refusal prints."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("girih-backbones: ")
    return err


def test_inspect_says_what_is_in_a_file(path: Path, capsys) -> None:
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"file             {path}\n" in out
    assert "encoder          ResidualEncoder of 2 stages, channels [2, 4], for 1 channels\n" in out
    assert "neck             UNetDecoder\n" in out
    assert "stems            ct (1), mr (4)\n" in out
    assert "patch_zyx        [8, 8, 8]\n" in out
    assert "spacing_zyx_mm   unknown\n" in out
    assert "objective        mae\n" in out
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_weights(path).header


def test_convert_there_and_back(path: Path, tmp_path: Path, capsys) -> None:
    there, back = tmp_path / "c.pth", tmp_path / "again.safetensors"
    assert main(["convert", str(path), str(there)]) == 0
    assert capsys.readouterr().out.startswith(f"{there}: ")
    assert main(["inspect", str(there)]) == 0
    assert "as the plan says" in capsys.readouterr().out
    assert main(["convert", str(there), str(back)]) == 0
    before, after = read_weights(path).tensors, read_weights(back)
    assert before.keys() == after.tensors.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.tensors.items())
    assert after.header["source"] == "nnssl checkpoint c.pth"
    assert "girih-backbones" in after.header["versions"]


def test_convert_names_the_default_stem_and_what_stays_behind(tmp_path: Path, capsys) -> None:
    encoder = ResidualEncoder(1, channels=(2, 4), blocks=(1, 2), kernels=((1, 3, 3), (3, 3, 3)))
    neck = UNetDecoder(encoder.channels, encoder.strides)
    save_weights(tmp_path / "w.safetensors", encoder=encoder, neck=neck, stems={"mr": make_stem(encoder, 4)})
    assert main(["convert", str(tmp_path / "w.safetensors"), str(tmp_path / "c.pth"), "--stem", "mr"]) == 0
    out = capsys.readouterr().out
    assert "left out, as nnU-Net's structure has no place for them: encoder.stem.conv.bias, " in out
    assert "neck.fuse.0.conv.bias" in out
    assert read_weights(tmp_path / "c.pth").header["in_channels"] == 4
    assert "stem: found none, wanted one of ['mr']" in failed(
        capsys, "convert", str(tmp_path / "w.safetensors"), str(tmp_path / "d.pth")
    )


@pytest.mark.parametrize(
    ("preset", "neck", "parameters", "operations"),
    [
        ("resenc_l", ["--neck", "UNetDecoder"], "102,348,160", "2,420.8 G"),
        ("retina_unet_v001", ["--neck", "UFPN"], "16,543,616", None),
        ("retina_unet_v002", [], "14,022,880", None),
    ],
)
def test_describe_counts(capsys, preset: str, neck: list[str], parameters: str, operations: str | None) -> None:
    assert main(["describe", preset, "--patch", "192", "192", "192", *neck]) == 0
    out = capsys.readouterr().out
    assert f"parameters            {parameters}\n" in out
    assert "channels              32, 64, 128, 256, 320, 320\n" in out
    assert operations is None or f"multiply-accumulates  {operations}\n" in out


def test_a_wrong_input_is_one_line(path: Path, tmp_path: Path, capsys) -> None:
    assert "no such weights file" in failed(capsys, "inspect", str(tmp_path / "absent.pth"))
    assert "suffix is '.onnx'; wanted one of .safetensors, .pth" in failed(capsys, "convert", str(path), "a.onnx")
    assert "there is no folder" in failed(capsys, "convert", str(path), str(tmp_path / "no" / "a.pth"))
    assert "--stem: found with .safetensors" in failed(capsys, "convert", str(path), "a.safetensors", "--stem", "ct")
    assert "wanted multiples of the total stride" in failed(capsys, "describe", "resenc_l", "--patch", "8", "8", "8")
    path.write_bytes(b"PK\x03\x04")
    assert "truncated or damaged checkpoint" in failed(capsys, "inspect", str(path))


def test_an_unknown_preset_or_command_is_refused_by_the_parser(capsys) -> None:
    for arguments in (["describe", "primus"], ["inspct"], []):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "resenc_l" in capsys.readouterr().err
