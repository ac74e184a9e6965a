import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from girih.atomic import write_json, write_text
from girih.runs import RunFolder, config_sha256, read_json, run_config


@dataclass(frozen=True)
class Training:
    seed: int = 0
    workers: int = 0
    resume: bool = False


@dataclass(frozen=True)
class Command:
    out: Path
    training: Training
    data: Path = Path("data")


def config(tmp_path: Path, *, batch: int = 2, **settings) -> dict:
    return run_config(Command(tmp_path, Training(**settings)), plan={"batch_size": batch}, dataset_sha256="d")


def begun(tmp_path: Path) -> RunFolder:
    """A run that has written a checkpoint."""
    folder = RunFolder(tmp_path / "run")
    folder.check(config(tmp_path), resume=False)
    folder.start(config(tmp_path))
    write_text(folder.checkpoints / "latest", "step_000000001")
    return folder


def test_a_run_folder_refuses_a_second_run_unless_it_resumes(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    with pytest.raises(ValueError, match="already holds a run; pass --resume"):
        folder.check(config(tmp_path), resume=False)
    folder.check(config(tmp_path, resume=True), resume=True)


def test_a_folder_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for seed in (0, 1):
        folder.check(config(tmp_path, seed=seed), resume=False)
        folder.start(config(tmp_path, seed=seed))
    assert folder.config["settings"]["training"]["seed"] == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, r"cannot resume with another training\.seed: found 0, asked for 1"),
        ({"batch": 4}, r"cannot resume with another plan\.batch_size: found 2, asked for 4"),
    ],
)
def test_resuming_another_run_names_the_field(tmp_path: Path, changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        begun(tmp_path).check(config(tmp_path, **changed), resume=True)


def test_settings_that_change_nothing_computed_may_differ(tmp_path: Path) -> None:
    assert config_sha256(config(tmp_path, workers=3)) == config_sha256(config(tmp_path / "elsewhere"))
    moved = run_config(Command(tmp_path, Training(), Path("moved")), plan={"batch_size": 2}, dataset_sha256="d")
    assert config_sha256(moved) == config_sha256(config(tmp_path))  # what lies there is compared, not where it lies
    assert config_sha256({**moved, "dataset_sha256": "e"}) != config_sha256(moved)
    assert config_sha256(config(tmp_path, seed=1)) != config_sha256(config(tmp_path))
    assert config_sha256(config(tmp_path, batch=4)) != config_sha256(config(tmp_path))


def test_nested_settings_keep_their_class(tmp_path: Path) -> None:
    assert config(tmp_path)["settings"]["training"]["class"] == "Training"


def test_rows_after_the_checkpoint_and_a_torn_last_row_are_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.log({"step": step, "loss": 0.5})
    with folder.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    folder.forget_after(2)
    assert [json.loads(row)["step"] for row in folder.metrics.read_text().splitlines()] == [1, 2]


def test_validations_after_the_checkpoint_are_forgotten_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.forget_after(0)
    for step in (2, 4, 6):
        folder.log_validation({"step": step, "ap": 0.5, "seconds": 1.0})
    folder.forget_after(4)
    assert [json.loads(row)["step"] for row in folder.validations.read_text().splitlines()] == [2, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["validation.jsonl"]


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_json(path, {"schema": "girih-x/1", "value": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": float("nan")})
    assert read_json(path, "girih-x", "scores")["value"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ValueError, match=r"is not a run: it has no config\.json"):
        read_json(path, "girih-run", "a run")
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_json(path, "girih-run", "a run")
    path.write_text('{"schema": "girih-run/9"}')
    with pytest.raises(ValueError, match="schema is 'girih-run/9', wanted 'girih-run/1'"):
        read_json(path, "girih-run", "a run")
