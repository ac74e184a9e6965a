"""What a transfer did, tensor by tensor."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from girih_backbones.described import preset_of
from girih_backbones.interfaces import Description

Status: TypeAlias = Literal["loaded", "reshaped", "skipped", "missing"]
STATUSES: tuple[Status, ...] = ("loaded", "reshaped", "skipped", "missing")
_SHOWN = 5  # failing tensors in the message of an error


@dataclass(frozen=True)
class Row:
    """One tensor.

    "loaded" as it is; "reshaped" to fit; "skipped": there is a tensor of that name, but it was not used; "missing": the
    model has it and the file does not. `error` says that this forbids the transfer.
    """

    name: str
    status: Status
    reason: str
    error: bool = False


@dataclass(frozen=True)
class TransferReport:
    """Every tensor of the model and of the file, once; `str()` is a table.

    Attributes:
        file: where the weights come from.
        found, wanted: the parts of the file and of the model that were compared, as "encoder" and perhaps "neck".
        rows: first the model's tensors in the model's order, then the rest of the file.
        notes: what was inferred, decided or left out when another program's file was read.
    """

    file: str
    found: dict[str, Description]
    wanted: dict[str, Description]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[Status, int]:
        """Number of tensors of each status; all four are always there."""
        number = Counter(row.status for row in self.rows)
        return {status: number[status] for status in STATUSES}

    @property
    def errors(self) -> tuple[Row, ...]:
        """The rows that forbid the transfer; empty in the report of a transfer that was done."""
        return tuple(row for row in self.rows if row.error)

    @property
    def differences(self) -> tuple[str, ...]:
        """Settings that differ between the network of the file and the model, the initialisation apart.

        A difference of the step or of the activation shows in no tensor's shape: read these lines.
        """
        lines: list[str] = []
        for part, wanted in self.wanted.items():
            if part not in self.found:
                lines.append(f"{part}: file none, model {wanted['class']}")
                continue
            found = self.found[part]
            if found["class"] != wanted["class"]:
                lines.append(f"{part} class: file {found['class']}, model {wanted['class']}")
                continue
            for key, value in wanted["kwargs"].items():
                if key != "init" and found["kwargs"].get(key) != value:
                    lines.append(f"{part} {key}: file {found['kwargs'].get(key)}, model {value}")
        return tuple(lines)

    def to_json(self) -> str:
        """Return the report as JSON: file, found, wanted, counts, differences, notes and rows."""
        content: dict[str, Any] = {
            "file": self.file,
            "found": self.found,
            "wanted": self.wanted,
            "counts": self.counts,
            "differences": self.differences,
            "notes": self.notes,
            "rows": [asdict(row) for row in self.rows],
        }
        return json.dumps(content, indent=1)

    def __str__(self) -> str:
        summary = ", ".join(f"{number} {status}" for status, number in self.counts.items())
        width = max((len(row.name) for row in self.rows), default=0)
        table = [f"{'! ' if r.error else '  '}{r.name:<{width}}  {r.status:<8}  {r.reason}".rstrip() for r in self.rows]
        differs, notes = (f"differs: {line}" for line in self.differences), (f"note: {line}" for line in self.notes)
        return "\n".join([f"{self.file}: {summary}", *differs, *notes, *table])


class TransferError(ValueError):
    """The weights do not fit the model, which is unchanged; `report` says of every tensor why."""

    def __init__(self, report: TransferReport) -> None:
        self.report = report
        errors = report.errors
        found, wanted = (
            " + ".join(short_description(part) for part in side.values()) for side in (report.found, report.wanted)
        )
        lines = [f"{report.file}: found {found}; wanted {wanted}; nothing loaded, {len(errors)} tensors do not fit"]
        lines += [f"  differs: {line}" for line in report.differences]
        lines += [f"  {row.name}: {row.reason}" for row in errors[:_SHOWN]]
        if len(errors) > _SHOWN:
            lines.append(f"  and {len(errors) - _SHOWN} more")
        super().__init__("\n".join(lines))


def short_description(description: Description) -> str:
    """Return a network in a few words: its class, and for an encoder the preset, or stages and channels."""
    name, kwargs = description["class"], description["kwargs"]
    preset = preset_of(description)
    if preset is not None:
        return f"{name} {preset}"
    channels = kwargs.get("channels")
    return name if channels is None else f"{name} of {len(channels)} stages, channels {channels}"
