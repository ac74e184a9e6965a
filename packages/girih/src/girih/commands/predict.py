"""`girih predict`: boxes for scans, from a fine-tuned detector."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import girih_data3d
from girih.atomic import write_json
from girih.checkpoints import latest_checkpoint, load_model
from girih.networks import make_detector
from girih.plans import Plan, plan_from_json
from girih.runs import RunFolder, config_sha256, read_json
from girih_detectors import RetinaUNet
from girih_detectors.inference import detect_volume, restore


@dataclass(frozen=True)
class Predict:
    """Find objects in scans: one JSON file of boxes per case, in the voxels and the millimetres of the source."""

    model: Path
    """The folder of a fine-tuning run."""
    data: Path
    """A dataset made by `girih prepare`, a scan (NIfTI, NRRD, MetaImage, DICOM folder), or a folder of scans."""
    out: Path
    """Where the JSON files go."""
    mirror: bool = True
    """Average over the 8 mirrored images; 8 times the work."""
    overlap: float = 0.5
    """Overlap of neighbouring tiles."""
    tile_batch: int = 2
    """Tiles per forward pass. On a CPU, torch's convolutions are several times slower for a single one."""
    resume: bool = False
    """Keep the predictions that are already in --out, and make the others."""
    device: Literal["auto", "cpu"] = "auto"
    """auto: a GPU where there is one."""

    def run(self) -> None:
        """Predict every case.

        Raises:
            ValueError: the model or a scan cannot be read, or they do not fit each other. Finished cases are kept.
        """
        detector, plan, config, checkpoint_name = load_detector(self.model)
        device = torch.device("cuda" if self.device == "auto" and torch.cuda.is_available() else "cpu")
        detector.to(device).eval()
        cases = _cases(self.data, config)
        done = self._begin(config_sha256(config), checkpoint_name)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            all_cases, tiles = progress.add_task("cases", total=len(cases)), progress.add_task("tiles")
            for case_id, read in cases.items():
                if case_id not in done:
                    image, prepared = read()
                    found = detect_volume(
                        detector,
                        image,
                        patch_zyx=plan.patch_zyx,
                        overlap=self.overlap,
                        mirror=self.mirror,
                        batch_size=self.tile_batch,
                        device=device,
                        progress=lambda n, total: progress.update(tiles, completed=n, total=total),
                    )
                    boxes = restore(found, prepared, case_id=case_id, classes=detector.classes)
                    write_json(self.out / f"{case_id}.json", boxes)
                progress.advance(all_cases)

    def _begin(self, model_sha256: str, checkpoint: str) -> set[str]:
        """Write down what predicts into --out, and return the cases that the same has predicted already."""
        record = {
            "schema": "girih-predictions/1",
            "model_sha256": model_sha256,
            "checkpoint": checkpoint,
            "mirror": self.mirror,
            "overlap": self.overlap,
        }
        beside = self.out.resolve().with_name(f"{self.out.resolve().name}.predict.json")
        done = {path.stem for path in self.out.glob("*.json")}
        if done and not self.resume:
            raise ValueError(
                f"{self.out} already holds {len(done)} predictions; pass --resume to keep them, or another --out"
            )
        if done:
            found = read_json(beside, "girih-predictions", "where `girih predict` has been")
            for name, wanted in record.items():
                if found.get(name) != wanted:
                    raise ValueError(f"{beside}: {name} is {found.get(name)!r}, now {wanted!r}: pass another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(beside, record)
        return done


def load_detector(run: Path) -> tuple[RetinaUNet, Plan, dict[str, Any], str]:
    """Return the detector of a fine-tuning run, its plan, the run's config, and the checkpoint of its weights.

    These are the newest, or their moving average if the run keeps one.

    Raises:
        ValueError: the folder is not a fine-tuning run, has no checkpoint yet, or the checkpoint does not fit its plan.
    """
    folder = RunFolder(run)
    config = folder.config
    if config["command"] != "finetune":
        raise ValueError(f"{run} is the run of {config['command']!r}, wanted one of 'finetune'")
    checkpoint = latest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        raise ValueError(f"{run} has no finished checkpoint yet")
    plan = plan_from_json(config["plan"], f"{run}/config.json")
    detector = make_detector(
        plan,
        in_channels=config["in_channels"],
        classes=tuple(config["classes"]),
        segmentation=config["settings"]["segmentation"],
        seed=0,
        flavour=config["settings"]["flavour"],
    )
    try:
        averaged = config["settings"]["recipe"].get("ema_decay", 0) > 0
        detector.load_state_dict(load_model(checkpoint, averaged=averaged))
    except RuntimeError as error:
        raise ValueError(f"{checkpoint}: does not fit the plan in {run}/config.json: {error}") from error
    return detector, plan, config, checkpoint.name


def _cases(data: Path, config: dict[str, Any]) -> dict[str, Callable[[], tuple[Any, girih_data3d.Prepared]]]:
    """Return for each case a function that gives (image, prepared), the scan prepared as the training data were."""
    spec = girih_data3d.PrepareSpec.from_json(config["prepare"])
    if (data / "cases").is_dir():
        store = girih_data3d.Store.open(data)
        if store.spec != spec:
            raise ValueError(f"{data} was prepared with {store.spec}, the model was trained on {spec}")
        return {case_id: partial(_from_store, store, case_id) for case_id in store.case_ids}
    sources = girih_data3d.read_manifest(data).sources
    return {source.case_id: partial(_from_files, source, spec, config["in_channels"]) for source in sources}


def _from_store(store: girih_data3d.Store, case_id: str) -> tuple[Any, girih_data3d.Prepared]:
    case = store[case_id]
    return case.lazy(), case.prepared


def _from_files(
    source: girih_data3d.CaseSource, spec: girih_data3d.PrepareSpec, in_channels: int
) -> tuple[Any, girih_data3d.Prepared]:
    image, prepared = girih_data3d.prepare_scan(girih_data3d.read_source(source), spec)
    if image.shape[0] != in_channels:
        raise ValueError(f"{source.case_id} has {image.shape[0]} channels, the model takes {in_channels}")
    return image.values, prepared
