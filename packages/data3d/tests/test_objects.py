"""Objects of a case as arrays."""

import numpy as np

from girih_data3d.objects import Objects

MASK = {"id": 7, "class": 1, "ignore": False, "box": [1, 2, 3, 4, 5, 6], "voxels": 9, "layer": 0}
SPHERE = {"id": 0, "class": 0, "ignore": True, "box": [0, 0, 0, 2, 2, 2], "centre": [1, 1, -1], "radii": [1, 2, 3]}


def test_rows_of_a_record() -> None:
    objects = Objects.from_record([MASK, SPHERE])
    assert len(objects) == 2
    assert objects.boxes.tolist() == [[1, 2, 3, 4, 5, 6], [0, 0, 0, 2, 2, 2]]
    assert (objects.labels.tolist(), objects.ignore.tolist()) == ([1, 0], [False, True])
    assert (objects.voxels.tolist(), objects.layer.tolist()) == ([9, 0], [0, -1])
    assert np.isnan(objects.centres_zyx[0]).all()
    assert np.isnan(objects.radii_zyx[0]).all()
    assert (objects.centres_zyx[1].tolist(), objects.radii_zyx[1].tolist()) == ([1, 1, -1], [1, 2, 3])


def test_no_objects() -> None:
    objects = Objects.from_record([])
    assert len(objects) == 0
    assert objects.boxes.shape == (0, 6)
    assert objects.centres_zyx.shape == (0, 3)
