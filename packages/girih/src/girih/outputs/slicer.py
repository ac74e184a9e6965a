"""Boxes as regions of interest of 3D Slicer 5: the content of a .mrk.json file, markups schema 1.0.3.

A region has a centre, axes and edge lengths, so in an oblique scan it is the box itself and not its hull. The numbers
are LPS mm; `orientation` is a 3x3 matrix row by row whose columns are the axes.
"""

from typing import Any

import numpy as np
from jaxtyping import Float64

from girih.outputs.case_boxes import CaseBoxes
from girih_data3d.affine import MAX_SHEAR

# What Slicer itself writes and compares. It is an identifier: the branch that it names is gone.
SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
# Okabe and Ito's colours, told apart by colour-blind readers; black is left out, because CT is dark.
COLOURS = (
    (0.90, 0.62, 0.00),
    (0.34, 0.71, 0.91),
    (0.00, 0.62, 0.45),
    (0.94, 0.89, 0.26),
    (0.00, 0.45, 0.70),
    (0.84, 0.37, 0.00),
    (0.80, 0.47, 0.65),
)


def markups(found: CaseBoxes, *, min_score: float = 0.0) -> dict[str, Any]:
    """Return the regions of all boxes with at least `min_score`, in the order of their rows.

    Each is named by its class and score, and described by the number that it has in the instance NIfTI. Regions are
    locked, so that a click does not move them.

    Raises:
        ValueError: a sheared affine; regions have right angles.
    """
    rows = np.flatnonzero(found.scores >= min_score)
    orientation = _axes_lps(found).ravel().tolist()
    low, high = found.boxes[:, 2::-1], found.boxes[:, :2:-1]  # (n, zyx) -> (n, xyz)
    centres = (low + high) / 2 - 0.5  # voxel edges -> voxel-centre indices
    centres_lps = (centres @ found.affine[:3, :3].T + found.affine[:3, 3]) * RAS_TO_LPS
    sizes = (high - low) * found.spacing_xyz_mm
    regions = [_region(found, int(row), centres_lps[row].tolist(), sizes[row].tolist(), orientation) for row in rows]
    return {"@schema": SCHEMA, "markups": regions}


def _axes_lps(found: CaseBoxes) -> Float64[np.ndarray, "3 3"]:
    """Unit vectors of the voxel axes as columns; if they are left-handed, one is turned round: a box has no front."""
    axes = found.affine[:3, :3] / found.spacing_xyz_mm * RAS_TO_LPS[:, None]
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > MAX_SHEAR:
        raise ValueError(
            f"case {found.case_id!r}: affine is sheared: cosine {shear:.4g} between two voxel axes, wanted at most "
            f"{MAX_SHEAR:g} for the format 'slicer', whose regions have right angles; leave it out"
        )
    if np.linalg.det(axes) < 0:
        axes[:, 2] *= -1
    return np.asarray(axes + 0.0)  # no -0.0


def _region(
    found: CaseBoxes, row: int, centre_lps_mm: list[float], size_mm: list[float], orientation: list[float]
) -> dict[str, Any]:
    label = int(found.labels[row])
    name = f"{found.classes[label]} {found.scores[row]:.3f}"
    colour = list(COLOURS[label % len(COLOURS)])
    return {
        "type": "ROI",
        "name": name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "fixedNumberOfControlPoints": False,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": 1,
        "roiType": "Box",
        "center": centre_lps_mm,
        "orientation": orientation,
        "size": size_mm,
        "insideOut": False,
        # A box has one control point, its centre; without it Slicer would wait for somebody to place one.
        "controlPoints": [
            {
                "id": "1",
                "label": name,
                "description": f"{found.case_id}, box {row + 1}",
                "associatedNodeID": "",
                "position": centre_lps_mm,
                "selected": True,
                "locked": True,
                "visibility": True,
                "positionStatus": "defined",
            }
        ],
        "display": {
            "visibility": True,
            "opacity": 1.0,
            "color": colour,
            "selectedColor": colour,
            "propertiesLabelVisibility": True,
            "pointLabelsVisibility": False,
        },
    }
