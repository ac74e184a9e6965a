"""From a raw dataset to a plan.json and the measurements beside it, as both command lines make them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from girih_data3d.atomic import check_writable
from girih_data3d.case_source import Dataset
from girih_data3d.fingerprint import Fingerprint
from girih_data3d.fingerprint_file import measure_or_read
from girih_data3d.normalisation import Scheme
from girih_data3d.plan import Plan, plan_text, write_plan
from girih_data3d.planning.memory import Precision
from girih_data3d.planning.network import Encoder
from girih_data3d.planning.planner import Rule, bytes_of, check_settings, make_plan


@dataclass(frozen=True)
class DatasetPlan:
    """What `plan_dataset` made and wrote."""

    plan: Plan
    fingerprint: Fingerprint
    out: Path
    measurements: Path
    measured: bool
    """Now; False: read from a file."""

    def describe(self) -> str:
        """Return a short table of what was found and what was chosen."""
        how = "made now" if self.measured else "read; made before, nothing changed since"
        return f"{self.out} (measurements: {self.measurements}, {how})\n{_table(self.plan, self.fingerprint)}"


def plan_dataset(
    dataset: Dataset,
    out: Path | str,
    *,
    rule: Rule = "default",
    encoder: Encoder = "resenc_l",
    memory_gb: float | None = None,
    batch_size: int = 4,
    precision: Precision = "no",
    normalisation: Scheme | None = None,
    seed: int = 0,
    measurements: Path | str | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    on_progress: Callable[[str, str], None] | None = None,
) -> DatasetPlan:
    """Measure a dataset, or read what was measured, plan for it, and write the plan.

    Args:
        dataset: from `read_manifest`, or a format.
        out: plan.json.
        rule: as all up to `seed` for `make_plan`.
        encoder: of the plan.
        memory_gb: of the GPU, GiB; None: 10.72, what nnDetection plans for.
        batch_size: patches per step.
        precision: of the training.
        normalisation: scheme; None: by rule and modality.
        seed: of the search for anchors.
        measurements: file of the fingerprint, see `measure_or_read`; None: fingerprint.json beside the plan.
        overwrite: whether `out` may be replaced by another plan.
        workers: processes, as `prepare_many` takes them.
        on_progress: called with (case id, "done" or "failed") after each case that is measured.

    Raises:
        ValueError: settings that are wrong, before anything is measured; `out` holds something else, as a plan that was
            edited does; or as `make_plan` and `measure_or_read`.
        OSError: a file cannot be written, or is a folder; before anything is measured.
    """
    out = Path(out)
    kept = out.absolute().parent / "fingerprint.json" if measurements is None else Path(measurements)
    budget = bytes_of(memory_gb)
    check_settings(batch_size=batch_size, memory_budget_bytes=budget, seed=seed)
    if out.absolute() == kept.absolute():
        raise ValueError(f"{out}: both the plan and the measurements, wanted two files")
    for path in (out, kept):
        check_writable(path)
    found, measured = measure_or_read(dataset, kept, workers=workers, on_progress=on_progress)
    plan = make_plan(
        found,
        rule=rule,
        encoder=encoder,
        memory_budget_bytes=budget,
        batch_size=batch_size,
        precision=precision,
        normalisation=normalisation,
        seed=seed,
    )
    if out.exists() and not overwrite and out.read_bytes() != plan_text(plan).encode():
        raise ValueError(f"{out} holds something else than this plan; give --overwrite to replace it, or another --out")
    write_plan(plan, out)
    return DatasetPlan(plan, found, out, kept, measured)


def _table(plan: Plan, found: Fingerprint) -> str:
    summary = found.summary()
    normalisation = plan.normalisation or {}
    middle = summary["object_mm_zyx"].get("p50")
    overlap = plan.anchors["mean_best_iou"]
    rows = {
        "dataset": f"{plan.dataset}: {summary['cases']} cases, {summary['unlabelled']} unlabelled",
        "objects": ", ".join(f"{n} {name}" for name, n in summary["objects"].items()) or "none",
        "median object": "-" if middle is None else f"{_by(middle)} mm",
        "modality": ", ".join(plan.modalities or ()),
        "median scan": f"{_by(summary['median_size_zyx'])} voxels of {_by(summary['median_spacing_zyx_mm'])} mm",
        "voxel size": f"{_by(plan.spacing_zyx_mm or ())} mm",
        "normalisation": str(normalisation.get("scheme"))
        + (f", {normalisation['clip'][0]:g} to {normalisation['clip'][1]:g}" if normalisation.get("clip") else ""),
        "patch": f"{_by(plan.patch_zyx)}, batches of {plan.batch_size}",
        "encoder": f"{plan.encoder['class']}, {len(plan.encoder['kwargs']['channels'])} stages",
        "levels": ", ".join(map(str, plan.levels)),
        "anchors": "as the search starts" if overlap is None else f"mean best IoU {overlap:.3f}",
        "queries": f"{plan.queries or '-'} ({plan.objects_per_patch_p95} objects per patch, 95th percentile)",
    }
    lines = [f"  {name:<14} {text}" for name, text in rows.items()]
    return "\n".join([*lines, *(f"  note           {note}" for note in plan.notes)]) + "\n"


def _by(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values)
