"""The run folder: config.json, metrics.jsonl, validation.jsonl, progress.png, checkpoints/: to see, resume, repeat."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from girih.atomic import write_json, write_text

SCHEMA = 1
VERSIONED = (
    "girih",
    "girih-data3d",
    "girih-backbones",
    "girih-ssl",
    "girih-detectors",
    "girih-metrics",
    "torch",
    "numpy",
    "zarr",
)
# Where things lie and how fast they run. What lies there is compared: the resolved plan, what the labels mean, and the
# hashes of data and weights. Cases beside those of a split change nothing.
FREE_TO_CHANGE = {
    *("out", "data", "plan", "weights", "datasets", "held_out", "validation", "split", "store_sha256", "checkpointing"),
    *(f"training.{name}" for name in ("resume", "workers", "checkpoint_every", "device", "trackers")),
}


class RunFolder:
    """One training run on disk. Only the main process writes; every process may read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.validations = path / "validation.jsonl"
        self.restart = path / "restart.json"

    @property
    def begun(self) -> bool:
        """Whether there is something to go on from: a checkpoint, or a failed start, see `girih.restarts`."""
        return (self.checkpoints / "latest").exists() or self.restart.exists()

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json.

        Raises:
            ValueError: the folder holds no readable config.json of this schema.
        """
        return read_json(self.path / "config.json", "girih-run", "the folder of a finished or running training")

    def check(self, config: Mapping[str, Any], *, resume: bool) -> None:
        """Check that the run of `config` may use this folder: nothing has begun there, or the same run is to go on.

        Raises:
            ValueError: the folder already holds a run and `resume` is false, or it is another run; the field is named.
        """
        if self.begun:
            if not resume:
                raise ValueError(f"{self.path} already holds a run; pass --resume to go on with it, or another --out")
            before, now = _deciding(self.config), _deciding(config)
            for field in sorted(before | now):
                old, new = before.get(field), now.get(field)
                if old != new:
                    target = self.path / "config.json"
                    raise ValueError(f"{target}: cannot resume with another {field}: found {old!r}, asked for {new!r}")

    def start(self, config: Mapping[str, Any]) -> None:
        """Write config.json; a folder without a checkpoint starts anew."""
        if not self.begun:
            write_json(self.path / "config.json", config)

    def log(self, row: Mapping[str, float | int]) -> None:
        """Append one row to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def log_validation(self, row: Mapping[str, float | int]) -> None:
        """Add one row to validation.jsonl, on disk for good: a later decision depends on it."""
        before = self.validations.read_text(encoding="utf-8") if self.validations.exists() else ""
        write_text(self.validations, before + json.dumps(row, allow_nan=False) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the rows of metrics.jsonl and validation.jsonl beyond `step`: a resumed run writes them again."""
        for table in (self.metrics, self.validations):
            if table.exists():
                rows = [line for line in table.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
                write_text(table, "".join(row + "\n" for row in rows))


def run_config(command: Any, **more: Any) -> dict[str, Any]:
    """Return the content of config.json for a command (a dataclass) and what it resolved to."""
    return {
        "schema": f"girih-run/{SCHEMA}",
        "command": type(command).__name__.lower(),
        "settings": plain(command),
        **{name: plain(value) for name, value in more.items()},
        "versions": versions(),
    }


def config_sha256(config: Mapping[str, Any]) -> str:
    """Hash of the settings that decide what is computed."""
    return hashlib.sha256(json.dumps(_deciding(config), sort_keys=True).encode()).hexdigest()


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level of numbers and texts, with names like training.seed."""
    rows: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows |= flat(value, f"{prefix}{name}.")
        else:
            rows[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list) else value
    return rows


def versions() -> dict[str, str]:
    """Versions of Python and the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """Return `value` as JSON types: dataclasses become dicts (with their class), paths strings, tuples lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__, **{f.name: plain(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def read_json(path: Path, schema: str, what: str) -> dict[str, Any]:
    """Return the JSON object in `path` whose "schema" starts with `schema`.

    Raises:
        ValueError: there is no such file, it is not JSON, or of another schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not {what}: it has no {path.name}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    found = content.get("schema") if isinstance(content, dict) else None
    if found != f"{schema}/{SCHEMA}":
        raise ValueError(f"{path}: schema is {found!r}, wanted '{schema}/{SCHEMA}'")
    return dict(content)


def refuse_another(path: Path, wanted: Mapping[str, Any], what: str) -> None:
    """Check that the record in `path` says what is wanted, so that what lies with it may be added to.

    Raises:
        ValueError: it does not, or is no such record; the field is named.
    """
    found = read_json(path, str(wanted["schema"]).partition("/")[0], what)
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ValueError(f"{path}: {name} is {found.get(name)!r}, now {value!r}: pass another --out")


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the numbers: settings, and the content of data, plan and weights."""
    parts = json.loads(json.dumps({key: value for key, value in config.items() if key not in ("schema", "versions")}))
    rows = flat(parts.pop("settings"))
    return {name: value for name, value in (flat(parts) | rows).items() if name not in FREE_TO_CHANGE}


def _step(line: str) -> int:
    """The step of a row; a line cut off by a kill counts as beyond every step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 2**63
