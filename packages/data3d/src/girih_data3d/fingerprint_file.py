"""The file of a fingerprint, and when it stands for measuring again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from girih_data3d.atomic import write_text
from girih_data3d.case_source import Dataset
from girih_data3d.checked_json import Checked, is_whole, read_json
from girih_data3d.errors import ManifestError
from girih_data3d.fingerprint import (
    SCHEMA,
    CaseFingerprint,
    Fingerprint,
    content_sha256,
    fingerprint,
    sources_sha256,
)
from girih_data3d.planning.quantiles import Intensities
from girih_data3d.readable_json import readable_json


def write_fingerprint(found: Fingerprint, path: Path | str) -> None:
    """Write a fingerprint as JSON, whole or not at all.

    Raises:
        OSError: it cannot be written, or is a folder.
    """
    write_text(Path(path), readable_json(found.to_json()) + "\n")


def read_fingerprint(path: Path | str) -> Fingerprint:
    """Read what `write_fingerprint` wrote.

    Raises:
        ManifestError: missing, not JSON, of another schema, or changed since it was measured.
    """
    path = Path(path)
    keys = {
        "schema",
        "sha256",
        "sources_sha256",
        "dataset",
        "classes",
        "intensities_of",
        "intensities",
        "failed",
        "cases",
    }
    top = Checked(read_json(path), str(path), keys, {"summary"})
    if not is_whole(top["schema"], SCHEMA, SCHEMA):
        raise top.wrong("schema", str(SCHEMA))
    content = {key: top[key] for key in top if key not in ("sha256", "sources_sha256", "summary")}
    if top["sha256"] != content_sha256(content):
        raise top.wrong(
            "sha256", f"{content_sha256(content)} for this content: it was edited or damaged; remove it and measure"
        )
    return Fingerprint(
        dataset=top["dataset"],
        classes=tuple(top["classes"]),
        cases=tuple(CaseFingerprint(**_tuples(case)) for case in top["cases"]),
        intensities=tuple(None if i is None else Intensities(**i) for i in top["intensities"]),
        intensities_of=top["intensities_of"],
        failed=top["failed"],
        sources_sha256=top.text("sources_sha256"),
    )


def measure_or_read(
    dataset: Dataset,
    path: Path | str,
    *,
    workers: int | None = None,
    on_progress: Callable[[str, str], None] | None = None,
) -> tuple[Fingerprint, bool]:
    """Return the fingerprint that is kept in a file and False, or measure the dataset, write it there, and return True.

    It is measured again if a case failed, or a file or an option changed since; files by size and time, unread.

    Raises:
        ManifestError: the file is damaged, or of another dataset.
        ValueError: as `fingerprint`.
        OSError: the file cannot be written, or is a folder.
    """
    path = Path(path)
    if path.exists():
        kept = read_fingerprint(path)
        if kept.dataset != dataset.name:
            raise ManifestError(
                f"{path}: measured on dataset {kept.dataset!r}, wanted {dataset.name!r}; remove it, or name another"
            )
        if not kept.failed and kept.sources_sha256 == sources_sha256(dataset):
            return kept, False
    found = fingerprint(dataset, workers=workers, on_progress=on_progress)
    write_fingerprint(found, path)
    return found, True


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    boxes = record["boxes"]
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    return {**fields, "boxes": None if boxes is None else tuple(tuple(box) for box in boxes)}
