"""`girih predict`: boxes for scans, from a fine-tuned detector or several."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes

from girih.atomic import remove_stale, write_json
from girih.casewise import OnTiles, case_by_case, refuse_failures
from girih.ensembles import Ensemble, load_ensemble
from girih.inference import Inference, Looking, read_merging
from girih.outputs import Format, missing_formats, write_case, write_table
from girih.recipes import require
from girih.runs import read_json
from girih.scans import Scan, find_scans
from girih.shares import read_share, wait_for_others
from girih_detectors.inference import Merging, merge, restore


@dataclass(frozen=True)
class Predict:
    """Find objects in scans: boxes in the voxels and the millimetres of the source, one JSON file per case.

    A case that fails does not stop the others; those that failed are listed at the end. --resume goes on where a killed
    call was.
    """

    model: tuple[Path, ...]
    """The folder of a fine-tuning run; several are an ensemble, of one set of classes, channels, preparation, patch."""
    data: Path
    """A dataset made by `girih prepare`, a scan (NIfTI, NRRD, MetaImage, DICOM folder), or a folder of scans."""
    out: Path
    """Folder for CASE.json, boxes.csv and a folder per further format."""
    formats: tuple[Format, ...] = ("csv", "slicer")
    """Beside the JSON. csv: one table of all cases; slicer: regions of interest for 3D Slicer; nifti: on the scan's
    grid, each box filled with its number in the table."""
    min_score: float = 0.0
    """Boxes below it are left out of these formats. The JSON has them all, for scoring."""
    merging: Path | None = None
    """How boxes of tiles, mirrors and models become one: what `girih sweep` wrote; else as nnDetection before its
    sweep."""
    inference: OmitArgPrefixes[Inference] = field(default_factory=Inference)
    resume: bool = False
    """Keep the cases that are in --out already, and make the others."""
    shard: str | None = None
    """i/n: only every n-th case from the i-th on (from 0), for job arrays. Under `torchrun` it is not needed."""

    def __post_init__(self) -> None:
        require("min_score", self.min_score, 0 <= self.min_score <= 1, "0 to 1")

    def run(self) -> None:
        """Predict every case.

        Raises:
            ValueError: the models or the data cannot be read or do not fit each other, or some cases failed; they are
                named. Finished cases are kept.
            OSError: a result cannot be written, for one because the disk is full. Finished cases are kept.
        """
        share = read_share(self.shard)
        looking = self.inference.resolve(share.local)
        merging = Merging() if self.merging is None else read_merging(self.merging)
        ensemble = load_ensemble(self.model)
        scans = share.of(find_scans(self.data, ensemble))
        done = self._begin(ensemble, looking, merging, scans, alone=share.count == 1)

        def work(scan: Scan, on_tiles: OnTiles) -> str | None:
            if scan.case_id in done:
                return self._complete(scan.case_id)
            found = _predict(scan, ensemble, looking, merging, on_tiles)
            self._write(found, self.formats)
            return f"{len(found['scores'])} boxes"

        failed = case_by_case(scans, work, quiet=share.local > 0)
        if "csv" in self.formats:
            write_table(self.out, min_score=self.min_score)
        wait_for_others(failed=bool(failed))
        refuse_failures(failed, len(scans))

    def _begin(
        self, ensemble: Ensemble, looking: Looking, merging: Merging, scans: Sequence[Scan], *, alone: bool
    ) -> set[str]:
        """Write down what predicts into --out, and return the cases that the same has predicted already.

        Processes that share --out begin when they like: what another one has finished does not count.
        """
        record = {
            "schema": "girih-predictions/1",
            "models": list(ensemble.models),
            **looking.record,
            "merging": dataclasses.asdict(merging),
            "min_score": self.min_score,
        }
        beside = self.out.resolve().with_name(f"{self.out.resolve().name}.predict.json")
        present = {path.stem for path in self.out.glob("*.json")}
        done = present & {scan.case_id for scan in scans}
        if (old := present if alone else done) and not self.resume:
            raise ValueError(
                f"{self.out} already holds {len(old)} predictions; pass --resume to keep them, or another --out"
            )
        if present or (beside.exists() and not alone):
            found = read_json(beside, "girih-predictions", "where `girih predict` has been")
            for name, wanted in record.items():
                if found.get(name) != wanted:
                    raise ValueError(f"{beside}: {name} is {found.get(name)!r}, now {wanted!r}: pass another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        for folder in (self.out, *(self.out / name for name in self.formats)):
            remove_stale(folder)
        write_json(beside, record)
        return done

    def _complete(self, case_id: str) -> str | None:
        """Write those views of a finished case that are not there."""
        missing = missing_formats(self.out, case_id, self.formats)
        if not missing:
            return None
        self._write(read_json(self.out / f"{case_id}.json", "girih-detections", "a folder of predictions"), missing)
        return f"kept, {' and '.join(missing)} added"

    def _write(self, found: Mapping[str, Any], formats: Sequence[Format]) -> None:
        try:
            write_case(self.out, found, formats=formats, min_score=self.min_score)
        except OSError as error:  # the next case could not be written either
            raise OSError(error.errno, f"{error.strerror}; finished cases are kept, --resume goes on") from error


def _predict(scan: Scan, ensemble: Ensemble, looking: Looking, merging: Merging, on_tiles: OnTiles) -> dict[str, Any]:
    """Return the boxes of a scan in its source's voxels, JSON-ready."""
    image, prepared = scan.open()
    candidates = looking.collect(ensemble, image, pool=merging.pool, progress=on_tiles)
    z, y, x = image.shape[1:]
    found = merge(candidates, (z, y, x), merging)
    return restore(found, prepared, case_id=scan.case_id, classes=ensemble.classes)
