"""Other readers of OME-Zarr find a case's voxels, where they lie, which way they point, and its labels."""

import warnings

import ngff_zarr
import numpy as np
import pytest

import girih_data3d as d3

with warnings.catch_warnings(action="ignore"):  # what napari's own imports deprecate
    from napari_ome_zarr import napari_get_reader


def test_ngff_zarr(prepared: d3.Store) -> None:
    case = prepared["case0"]
    for path, dims in ((case.folder, "czyx"), (case.folder / "labels" / "instances", "zyx")):
        image = ngff_zarr.from_ngff_zarr(str(path)).images[0]
        assert "".join(image.dims) == dims
        assert [image.scale[axis] for axis in "zyx"] == list(case.spacing_zyx_mm)
        assert [image.translation[axis] for axis in "xyz"] == case.affine[:3, 3].tolist()
        assert {image.axes_units[axis] for axis in "zyx"} == {"millimeter"}
        assert {axis: found.value.value for axis, found in image.axes_orientations.items()} == {
            "z": "inferior-to-superior",
            "y": "posterior-to-anterior",
            "x": "left-to-right",
        }
    labels = np.asarray(ngff_zarr.from_ngff_zarr(str(case.folder / "labels" / "instances")).images[0].data)
    np.testing.assert_array_equal(labels, case.read_label_patch("instances", (0, 0, 0), case.shape[1:]))
    stored = np.asarray(ngff_zarr.from_ngff_zarr(str(case.folder)).images[0].data)
    np.testing.assert_array_equal(stored, case.read_patch((0, 0, 0), case.shape[1:], raw=True))


def test_napari(overlapping: d3.Store) -> None:
    case = overlapping["two"]
    read = napari_get_reader(str(case.folder))
    assert read is not None
    (image, settings, kind), *labels = read(str(case.folder))
    assert kind == "image"
    assert settings["channel_axis"] == 0
    assert settings["scale"] == pytest.approx(case.spacing_zyx_mm)
    assert settings["units"] == ("millimeter",) * 3
    np.testing.assert_array_equal(np.asarray(image[0]), case.read_patch((0, 0, 0), case.shape[1:], raw=True))
    assert [kind for _, _, kind in labels] == ["labels"] * 3
    layers = case.read_instance_layers((0, 0, 0), case.shape[1:])
    for (found, _, _), layer in zip(labels, layers, strict=False):
        np.testing.assert_array_equal(np.asarray(found[0]), layer)
