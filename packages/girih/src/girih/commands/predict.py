"""`girih predict`: boxes for scans, from a fine-tuned detector or several."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from tyro.conf import OmitArgPrefixes

from girih.atomic import remove_stale, write_json
from girih.casewise import OnTiles, case_by_case, refuse_failures
from girih.ensembles import Ensemble, load_ensemble
from girih.inference import Inference, Looking
from girih.merging_file import read_merging
from girih.outputs import Format, missing_formats, write_case, write_table
from girih.outputs.case_boxes import read_case
from girih.outputs.table import NAME as TABLE
from girih.recipes import require
from girih.runs import read_json, refuse_another
from girih.scans import Scan, find_scans
from girih.shares import read_share, with_others
from girih_detectors.inference import Merging, merge, restore

RECORD = Path(".girih", "predict.json")
"""What predicts into a folder of predictions; in a folder of its own, as all other *.json are cases."""
WHAT = "where `girih predict` has been"


@dataclass(frozen=True)
class Predict:
    """Find objects in scans: boxes in voxels and millimetres of the scan, one JSON file per case.

    A case that fails does not stop the others. Those that failed are listed at the end.
    """

    model: tuple[Path, ...]
    """Folder of a fine-tuning run. Several predict together, if they share classes, channels, preparation, patch."""
    data: Path
    """A dataset made by `girih prepare`, one scan (NIfTI, NRRD, MetaImage, folder of a DICOM series), a folder of them.
    A folder may hold a dataset.json, which says what files are the channels of a case."""
    out: Path
    """Folder for CASE.json, boxes.csv and a folder per further format."""
    formats: tuple[Format, ...] = ("csv", "slicer")
    """What to write beside the JSON files.
    csv: one table of the boxes of all cases.
    slicer: regions of interest for 3D Slicer.
    nifti: a volume like the scan, each box filled with its number in the table."""
    min_score: float = 0.0
    """Boxes below it are left out of these formats. The JSON files have all boxes, for scoring."""
    merging: Path | None = None
    """File written by `girih sweep`: how boxes of tiles, mirrors and models become one. Without it: as nnDetection."""
    inference: OmitArgPrefixes[Inference] = field(default_factory=Inference)
    resume: bool = False
    """Go on in --out: keep the finished cases whose scans are the same as before, and make the others."""
    shard: str | None = None
    """i/n, with i from 0: only every n-th case from the i-th on, for job arrays. `torchrun` does without it."""

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
        console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
        with with_others():
            looking = self.inference.resolve(share.local)
            ensemble = load_ensemble(self.model)
            merging, doubt = self._merging(ensemble, looking)
            found, passed_over = find_scans(self.data, ensemble)
            if share.local == 0 and passed_over:
                console.print(f"no scans, passed over: {', '.join(passed_over)}")
            if share.local == 0 and doubt:
                console.print(f"warning: {doubt}")
            scans = share.of(found)
            if share.count > 1:
                console.print(f"share {share.index} of {share.count}: {len(scans)} of {len(found)} cases")
            done = self._begin(ensemble, looking, merging, scans, alone=share.count == 1)

            def work(scan: Scan, on_tiles: OnTiles) -> str | None:
                source, again = scan.source(), ""
                if scan.case_id in done:
                    try:
                        return self._complete(self._finished(scan.case_id, source))
                    except _NotFinishedError as reason:
                        (self.out / f"{scan.case_id}.json").unlink()
                        again = f", made again: {reason}"
                boxes = _predict(scan, ensemble, looking, merging, on_tiles)
                self._write({**boxes, "source": source}, self.formats)
                return f"{len(boxes['scores'])} boxes{again}"

            failed = case_by_case(scans, work, quiet=share.local > 0)
            refuse_failures(failed, len(scans), *self._write_table())

    def _merging(self, ensemble: Ensemble, looking: Looking) -> tuple[Merging, str | None]:
        if self.merging is None:
            return Merging(), None
        return read_merging(self.merging, {"models": list(ensemble.models), **looking.record})

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
        inside = self.out / RECORD
        present = {path.stem for path in self.out.glob("*.json") if not path.name.startswith(".")}
        done = present & {scan.case_id for scan in scans}
        if (present if alone else done) and not self.resume:
            n = f"{len(present)} prediction{'s' if len(present) > 1 else ''}"
            raise ValueError(f"{self.out} already holds {n}; pass --resume to keep them, or another --out")
        if present or (inside.exists() and not alone):
            refuse_another(inside, record, WHAT)
        for folder in (self.out, *(self.out / name for name in self.formats)):
            remove_stale(folder)
        write_json(inside, record)
        return done

    def _finished(self, case_id: str, source: str) -> dict[str, Any]:
        """Return the content of a finished case's file.

        Raises:
            _NotFinishedError: it is damaged, or the scan was another one then.
        """
        path = self.out / f"{case_id}.json"
        try:
            read_case(path)
            found = read_json(path, "girih-detections", "a folder of predictions")
        except ValueError as error:
            raise _NotFinishedError(str(error)) from error
        if found.get("source") != source:
            raise _NotFinishedError(f"the scan is another one than that of {path}")
        return found

    def _complete(self, found: Mapping[str, Any]) -> str | None:
        """Write those views of a finished case that are not there."""
        missing = missing_formats(self.out, found["case_id"], self.formats, min_score=self.min_score)
        if not missing:
            return None
        self._write(found, missing)
        return f"kept, {' and '.join(missing)} added"

    def _write(self, found: Mapping[str, Any], formats: Sequence[Format]) -> None:
        try:
            write_case(self.out, found, formats=formats, min_score=self.min_score)
        except OSError as error:  # the next case could not be written either
            raise OSError(error.errno, f"{error.strerror}; finished cases are kept, --resume goes on") from error

    def _write_table(self) -> list[str]:
        """Write the table, also where one lies that would not be up to date; return what went wrong."""
        if "csv" in self.formats or (self.out / TABLE).exists():
            try:
                write_table(self.out, min_score=self.min_score)
            except (ValueError, OSError) as error:
                return [f"{TABLE} was not written: {error}"]
        return []


class _NotFinishedError(Exception):
    """A case has to be made again; the message says why."""


def _predict(scan: Scan, ensemble: Ensemble, looking: Looking, merging: Merging, on_tiles: OnTiles) -> dict[str, Any]:
    """Return the boxes of a scan in its source's voxels, JSON-ready."""
    image, prepared = scan.open()
    candidates = looking.collect(ensemble, image, pool=merging.pool, progress=on_tiles)
    z, y, x = image.shape[1:]
    found = merge(candidates, (z, y, x), merging)
    return restore(found, prepared, case_id=scan.case_id, classes=ensemble.classes)
