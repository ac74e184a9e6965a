"""What networks found in each case before any merging, on disk: one .npz per case, without pickle."""

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from girih.atomic import remove_stale, write_bytes, write_json
from girih.runs import refuse_another
from girih_detectors.inference import Candidates, RawCase

COLUMNS: tuple[Literal["boxes"], Literal["scores"], Literal["labels"], Literal["weights"]] = (
    "boxes",
    "scores",
    "labels",
    "weights",
)


class CandidateFolder(Mapping[str, RawCase]):
    """Candidates of cases, each with the checksum of the data that they were found in; read when they are asked for."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, int, int]]) -> None:
        """Say where the folder is, and how many voxels (z, y, x) each case has."""
        self.path, self.shapes = path, shapes

    def begin(self, record: Mapping[str, Any]) -> None:
        """Make the folder, or go on with one that the same models have begun in the same way.

        Raises:
            ValueError: the folder is of others; the field of `record` is named.
        """
        beside, wanted = self.path / "candidates.json", {"schema": "girih-candidates/1", **record}
        if beside.exists():
            refuse_another(beside, wanted, "a folder of candidates")
        self.path.mkdir(parents=True, exist_ok=True)
        remove_stale(self.path)
        write_json(beside, wanted)

    def holds(self, case_id: str, checksum: int) -> bool:
        """Return whether the candidates of a case are there, found in the data that have this checksum.

        Raises:
            ValueError: the file is damaged.
        """
        return self._file(case_id).exists() and int(self._load(case_id, "checksum")["checksum"]) == checksum

    def write(self, case_id: str, checksum: int, sets: Sequence[Candidates]) -> None:
        """Keep the candidates of a case: one set per model and mirroring."""
        columns: dict[str, Any] = {name: torch.cat([one[name] for one in sets]).numpy() for name in COLUMNS}
        lengths, content = np.array([len(one["scores"]) for one in sets]), io.BytesIO()
        np.savez(content, lengths=lengths, checksum=np.array(checksum), **columns)
        write_bytes(self._file(case_id), content.getvalue())

    def __getitem__(self, case_id: str) -> RawCase:
        """Read the candidates of a case.

        Raises:
            ValueError: the file is missing or damaged.
        """
        found = self._load(case_id, "lengths", *COLUMNS)
        ends = np.cumsum(found["lengths"])[:-1]
        parts = [map(torch.from_numpy, np.split(found[name], ends)) for name in COLUMNS]
        sets = [
            Candidates(boxes=boxes, scores=scores, labels=labels, weights=weights)
            for boxes, scores, labels, weights in zip(*parts, strict=True)
        ]
        return RawCase(shape_zyx=self.shapes[case_id], candidates=sets)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def _file(self, case_id: str) -> Path:
        return self.path / f"{case_id}.npz"

    def _load(self, case_id: str, *names: str) -> dict[str, np.ndarray]:
        path = self._file(case_id)
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                return {name: file[name] for name in names}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: cannot be read, remove it to have it made again: {error}") from error
