"""ome-zarr-models, which checks OME-Zarr 0.5 metadata with pydantic, accepts every prepared case."""

import zarr
from ome_zarr_models import open_ome_zarr
from ome_zarr_models.v05 import Image, ImageLabel

import girih_data3d as d3


def test_case_is_a_valid_image(prepared: d3.Store) -> None:
    for case_id in prepared:
        case = prepared[case_id]
        group = zarr.open_group(case.folder, mode="r")
        assert isinstance(open_ome_zarr(group), Image)
        (multiscale,) = Image.from_zarr(group).ome_attributes.multiscales
        assert [axis.name for axis in multiscale.axes] == ["c", "z", "y", "x"]
        assert {axis.unit for axis in multiscale.axes[1:]} == {"millimeter"}
        scale, translation = multiscale.datasets[0].coordinateTransformations
        assert scale.scale == [1.0, *case.spacing_zyx_mm]
        assert translation.translation == [0.0, *case.affine[:3, 3][::-1]]


def test_labels_are_valid_and_belong_to_the_image(overlapping: d3.Store) -> None:
    group = zarr.open_group(overlapping["two"].folder, mode="r")
    labels = Image.from_zarr(group).labels
    assert labels is not None
    names = labels.ome_attributes.labels
    assert names == ["instances", "instances-2", "semantic"]
    for name in names:
        found = ImageLabel.from_zarr(group[f"labels/{name}"]).ome_attributes
        assert found.image_label.source.image == "../../"
        assert [axis.name for axis in found.multiscales[0].axes] == ["z", "y", "x"]
