import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from girih_backbones import (
    UFPN,
    PlainEncoder,
    ResidualEncoder,
    UNetDecoder,
    WeightsError,
    describe,
    make_encoder,
    make_stem,
    read_weights,
    save_weights,
    write_weights,
)
from girih_backbones.cli import main

NORMALISATION = {"scheme": "ct", "clip": [-1000.0, 400.0], "mean": [-300.0], "std": [250.0]}


@pytest.fixture
def encoder() -> ResidualEncoder:
    return ResidualEncoder(1, channels=(2, 4), blocks=(1, 2))


@pytest.fixture
def path(tmp_path: Path, encoder: ResidualEncoder) -> Path:
    save_weights(tmp_path / "encoder.safetensors", encoder=encoder)
    return tmp_path / "encoder.safetensors"


def refused(path: Path) -> str:
    """Return the message of a refusal, which names the file."""
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- round trip ---------------------------------------------------------------------------------------------------


def test_others_may_read_what_they_may_read_beside_it(path: Path) -> None:
    beside = path.with_name("beside.txt")
    beside.touch()
    assert path.stat().st_mode == beside.stat().st_mode


@pytest.mark.parametrize("neck", [None, UNetDecoder, UFPN])
def test_everything_comes_back_bit_for_bit(tmp_path: Path, encoder: ResidualEncoder, neck: type | None) -> None:
    settings = {"first_level": 1} if neck is UFPN else {}
    neck = None if neck is None else neck(encoder.channels, encoder.strides, **settings)
    stems = torch.nn.ModuleDict({"ct": make_stem(encoder, 1), "brats-4": make_stem(encoder, 4)})
    told = {
        "patch_zyx": (16, 32, 32),
        "spacing_zyx_mm": (2.5, 1.0, 1.0),
        "normalisation": NORMALISATION,
        "modality": "CT",
        "objective": "mae",
        "objective_config": {"ratio": 0.75, "block": [16, 16, 16]},
        "steps": 1000,
        "source": "a test",
    }
    save_weights(tmp_path / "w.safetensors", encoder=encoder, neck=neck, stems=stems, versions={"girih": "9"}, **told)
    weights = read_weights(str(tmp_path / "w.safetensors"))
    modules = {"encoder": encoder, "stems": stems} | ({} if neck is None else {"neck": neck})
    wanted = {f"{part}.{name}": t for part, module in modules.items() for name, t in module.state_dict().items()}
    assert weights.tensors.keys() == wanted.keys()
    assert all(torch.equal(weights.tensors[name], tensor) for name, tensor in wanted.items())
    header = dict(weights.header)
    assert header.pop("versions") == {"girih": "9", "girih-backbones": "0.1.0", "torch": torch.__version__}
    assert header == {
        "schema": 1,
        "encoder": describe(encoder),
        "neck": None if neck is None else describe(neck),
        "in_channels": 1,
        "stems": {"ct": 1, "brats-4": 4},
        **{key: list(value) if isinstance(value, tuple) else value for key, value in told.items()},
    }
    assert weights.path == tmp_path / "w.safetensors"
    again = make_encoder(weights.header["encoder"], weights.header["in_channels"])
    assert again.state_dict().keys() == encoder.state_dict().keys()


def test_what_is_unknown_is_null(path: Path) -> None:
    header = read_weights(path).header
    unknown = {key for key, value in header.items() if value is None}
    told = {"schema", "encoder", "in_channels", "stems", "versions"}
    assert unknown == header.keys() - told
    assert header["stems"] == {}


def test_tensors_are_float32_in_the_file_and_the_model_keeps_its_type(tmp_path: Path, encoder: ResidualEncoder) -> None:
    encoder.to(torch.bfloat16)
    save_weights(tmp_path / "w.safetensors", encoder=encoder)
    assert {t.dtype for t in read_weights(tmp_path / "w.safetensors").tensors.values()} == {torch.float32}
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}


def test_read_tensors_do_not_depend_on_the_file(path: Path, encoder: ResidualEncoder) -> None:
    weights = read_weights(path)
    path.write_bytes(bytes(path.stat().st_size))
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(weights.tensors[f"encoder.{name}"], tensor)


def test_a_stem_that_two_datasets_share_is_written_for_both(tmp_path: Path, encoder: ResidualEncoder) -> None:
    save_weights(tmp_path / "w.safetensors", encoder=encoder, stems={"a": encoder.stem, "b": encoder.stem})
    tensors = read_weights(tmp_path / "w.safetensors").tensors
    assert torch.equal(tensors["stems.a.conv.weight"], tensors["stems.b.conv.weight"])


def test_what_was_read_can_be_written_again(path: Path, tmp_path: Path) -> None:
    weights = read_weights(path)
    write_weights(tmp_path / "again.safetensors", weights)
    again = read_weights(tmp_path / "again.safetensors")
    assert again.header == weights.header
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in weights.tensors.items())
    weights.tensors.pop("encoder.stem.conv.bias")
    with pytest.raises(ValueError, match=r"tensor encoder\.stem\.conv\.bias: not found"):
        write_weights(tmp_path / "broken.safetensors", weights)
    assert not (tmp_path / "broken.safetensors").exists()


# --- writing ------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("girih_backbones.writing.os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save_weights(path, encoder=PlainEncoder(1, channels=(2,), convs=(1,)))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, encoder: ResidualEncoder, value: float) -> None:
    with torch.no_grad():
        encoder.stages[1][0].conv2.conv.weight[0, 0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"tensor encoder\.stages\.1\.0\.conv2\.conv\.weight: .* not finite"):
        save_weights(tmp_path / "w.safetensors", encoder=encoder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"patch_zyx": (16, 16)}, r"'patch_zyx': found \[16, 16\], wanted three whole numbers"),
        ({"spacing_zyx_mm": (1.0, 0.0, 1.0)}, "'spacing_zyx_mm'"),
        ({"spacing_zyx_mm": (1.0, float("nan"), 1.0)}, "cannot be written as JSON"),
        ({"normalisation": {"scheme": "minmax", "clip": None, "mean": None, "std": None}}, "'normalisation'.*'zscore'"),
        ({"normalisation": {"scheme": "ct"}}, "'normalisation'"),
        ({"steps": -1}, "'steps'"),
        ({"objective_config": {"path": Path()}}, "cannot be written as JSON"),
    ],
)
def test_a_wrong_header_is_not_written(tmp_path: Path, encoder: ResidualEncoder, told: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_weights(tmp_path / "w.safetensors", encoder=encoder, **told)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_not_as_described_is_not_written(tmp_path: Path, encoder: ResidualEncoder) -> None:
    encoder.stem = make_stem(encoder, 4)  # but in_channels still says 1
    with pytest.raises(ValueError, match=r"encoder\.stem\.conv\.weight: found shape \(2, 4, 3, 3, 3\), the header"):
        save_weights(tmp_path / "w.safetensors", encoder=encoder)
    with pytest.raises(ValueError, match="without a 3D convolution"):
        save_weights(tmp_path / "w.safetensors", encoder=encoder, stems={"ct": torch.nn.Identity()})
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save_weights(tmp_path / "no" / "w.safetensors", encoder=ResidualEncoder(1, channels=(2,), blocks=(1,)))


# --- files that are refused ---------------------------------------------------------------------------------------


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors: no such weights file"):
        read_weights(tmp_path / "absent.safetensors")
    assert "found a folder" in refused(tmp_path)


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, -1])
def test_a_truncated_file_is_refused(path: Path, kept: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    assert "safetensors" in refused(path)


def test_a_pickle_under_another_name_is_refused_and_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"

    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (victim,)

    path = tmp_path / "bomb.safetensors"
    torch.save({"network_weights": Bomb()}, path)
    assert "which is code" in refused(path)
    path.write_bytes(pickle.dumps(Bomb()))
    assert "found a bare pickle" in refused(path)
    assert not victim.exists()


def test_a_foreign_file_is_refused(path: Path) -> None:
    path.write_bytes(b"\x1f\x8b some gzip, perhaps")
    assert "begins with" in refused(path)
    save_file({"w": torch.zeros(1)}, path)
    assert "no entry 'girih'" in refused(path)
    save_file({"w": torch.zeros(1)}, path, {"girih": "{"})
    assert "header: not JSON" in refused(path)
    save_file({"w": torch.zeros(1)}, path, {"girih": "[" * 100_000})
    assert "header: not JSON" in refused(path)
    save_file({"w": torch.zeros(1)}, path, {"girih": "[]"})
    assert "header: found [], wanted an object" in refused(path)
    save_file({"w": torch.zeros(1)}, path, {"girih": " " * 2**21})
    assert "wanted at most" in refused(path)


def test_a_file_above_the_limit_is_refused(path: Path) -> None:
    size = path.stat().st_size
    assert read_weights(path, max_bytes=size)
    with pytest.raises(WeightsError, match=f"found {size} bytes, wanted at most {size - 1}"):
        read_weights(path, max_bytes=size - 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", 2),
        ("schema", True),
        ("encoder", {"class": "ResidualEncoder"}),
        ("neck", "UFPN"),
        ("in_channels", 0),
        ("stems", {"a.b": 1}),
        ("patch_zyx", [8, 8, 8, 8]),
        ("spacing_zyx_mm", [1, 1, -1]),
        ("normalisation", {"scheme": "zscore", "clip": [1], "mean": None, "std": None}),
        ("modality", 3),
        ("objective", ""),
        ("objective_config", []),
        ("steps", 1.5),
        ("source", {}),
        ("versions", {"torch": 2}),
    ],
)
def test_a_wrong_or_missing_field_is_named(path: Path, rewrite, field: str, value: object) -> None:
    rewrite(path, lambda header, tensors: header.update({field: value}))
    assert f"header field {field!r}: found {value!r}, wanted" in refused(path)
    rewrite(path, lambda header, tensors: header.pop(field))
    assert f"header field {field!r}: not found" in refused(path)


def test_notes_are_optional_and_a_list_of_text(path: Path, rewrite) -> None:
    assert "notes" not in read_weights(path).header
    rewrite(path, lambda header, tensors: header.update(notes=["inferred"]))
    assert read_weights(path).header["notes"] == ["inferred"]
    rewrite(path, lambda header, tensors: header.update(notes="inferred"))
    assert "header field 'notes': found 'inferred', wanted a list of text" in refused(path)


def test_an_unknown_field_is_ignored(path: Path, rewrite) -> None:
    rewrite(path, lambda header, tensors: header.update(colour="blue"))
    assert read_weights(path).header["schema"] == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"channels": [2, 8]}, "found shape"),
        ({"blocks": [1, 1]}, "found, but not in the described network"),
        ({"blocks": [2, 2]}, "not found, but in the described network (8 such tensors)"),
        ({"blocks": [1, 10**6]}, "wanted at most"),
        ({"channels": [2**60, 4]}, "channels: found"),
        ({"channels": 7}, "channels"),
        ({"colour": "blue"}, "ResidualEncoder"),
    ],
)
def test_a_description_that_contradicts_the_tensors_is_refused(path: Path, rewrite, kwargs: dict, message: str) -> None:
    rewrite(path, lambda header, tensors: header["encoder"]["kwargs"].update(kwargs))
    assert message in refused(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(stems={"a": 2**62}), "in_channels: found (4611686018427387904,), wanted 1 to"),
        (
            lambda header: header["encoder"]["kwargs"].update(kernels=[[2**20 - 1] * 3] * 2, channels=[2**20] * 2),
            "header: describes a network that cannot be built",
        ),
    ],
)
def test_numbers_that_no_tensor_has_are_refused(path: Path, rewrite, capsys, change: Any, message: str) -> None:
    rewrite(path, lambda header, tensors: change(header))
    assert message in refused(path)
    assert main(["inspect", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_architecture_is_refused(path: Path, rewrite) -> None:
    rewrite(path, lambda header, tensors: header["encoder"].update({"class": "Primus"}))
    assert "encoder class: found 'Primus', wanted one of" in refused(path)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.full((2,), float("nan")), "not finite"),
        (torch.tensor([0.0, -float("inf")]), "not finite"),
        (torch.zeros(2, dtype=torch.float64), "found torch.float64, wanted torch.float32"),
        (torch.zeros(3), "found shape (3,), the header describes (2,)"),
    ],
)
def test_a_bad_tensor_is_named(path: Path, rewrite, tensor: torch.Tensor, message: str) -> None:
    rewrite(path, lambda header, tensors: tensors.update({"encoder.stem.norm.bias": tensor}))
    found = refused(path)
    assert "tensor encoder.stem.norm.bias: " in found
    assert message in found


def test_tensors_too_many_or_too_few_are_named(path: Path, rewrite) -> None:
    rewrite(path, lambda header, tensors: tensors.update({"decoder.weight": torch.zeros(1)}))
    assert "tensor decoder.weight: found, but not in the described network (1 such tensors)" in refused(path)
    rewrite(path, lambda header, tensors: (tensors.pop("decoder.weight"), tensors.pop("encoder.stem.conv.bias")))
    assert "tensor encoder.stem.conv.bias: not found" in refused(path)
