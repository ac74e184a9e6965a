"""What a prepared dataset or case holds, as plain JSON values and as text."""

from collections import Counter
from typing import Any

import numpy as np
from jaxtyping import Shaped

from girih_data3d.case import Case
from girih_data3d.store import Store


def describe_dataset(store: Store) -> dict[str, Any]:
    """Return counts, sizes and settings of a dataset, from its index."""
    index = store.index
    counts = np.bincount(index.labels, minlength=len(store.classes)).tolist()
    return {
        "name": store.name,
        "cases": len(index),
        "patients": len(set(index.patient_ids)),
        "modalities": dict(Counter(str(name) for name in index.modalities)),
        "channels": {str(n): count for n, count in sorted(Counter(index.channels.tolist()).items())},
        "shape_zyx": _range(index.shapes),
        "spacing_zyx_mm": _range(index.spacings_mm),
        "bytes": int(index.bytes.sum()),
        "annotated": int(index.annotated.sum()),
        "instances": int(index.instances.sum()),
        "semantic": int(index.semantic.sum()),
        "defaced": int(index.valid.sum()),
        "parts": dict(Counter(str(name) for name in index.parts)),
        "objects": dict(zip(store.classes, counts, strict=True)),
        "spec": store.spec.to_json(),
        "spec_hash": store.spec.sha256,
    }


def describe_case(case: Case) -> dict[str, Any]:
    """Return geometry, objects, source and files of a case."""
    objects = case.objects
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "modality": case.modality,
        "series_uid": case.series_uid,
        "part": case.part,
        "scan_sha256": case.scan_sha256,
        "shape_czyx": list(case.shape),
        "dtype": str(case.dtype),
        "spacing_zyx_mm": list(case.spacing_zyx_mm),
        "affine": case.affine.tolist(),
        "labels": list(case.label_kinds),
        "objects": [
            {"class": label, "ignore": ignore, "box_zyx": box, "voxels": voxels}
            for label, ignore, box, voxels in zip(
                objects.labels.tolist(),
                objects.ignore.tolist(),
                objects.boxes.tolist(),
                objects.voxels.tolist(),
                strict=True,
            )
        ],
        "notes": case.notes,
        "prepared": dict(case.prepared),
        "source": case.source,
        "files": {name: entry["bytes"] for name, entry in case.files.items()},
    }


def as_text(found: dict[str, Any], indent: str = "") -> str:
    """Return a description as indented lines, one per value."""
    lines = []
    for key, value in found.items():
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{key}:\n{as_text(value, indent + '  ')}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ("  ".join(f"{k} {_short(v)}" for k, v in row.items()) for row in value)
            lines.append(f"{indent}{key}:\n" + "".join(f"{indent}  {row}\n" for row in rows))
        else:
            lines.append(f"{indent}{key}: {_short(value)}\n")
    return "".join(lines)


def _range(rows: Shaped[np.ndarray, "n 3"]) -> dict[str, list[Any]]:
    """Return the smallest, the middle and the largest value of each axis."""
    if not len(rows):
        return {}
    low, middle, high = np.quantile(rows, (0, 0.5, 1), axis=0, method="nearest").tolist()
    return {"smallest": low, "median": middle, "largest": high}


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_short(item) for item in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
