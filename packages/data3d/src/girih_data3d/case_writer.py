"""Write one prepared case: an OME-Zarr 0.5 group, one shard per array, checksums over everything."""

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float32, Float64, Int16, Int32, Shaped
from zarr.codecs import BloscCodec, Crc32cCodec

from girih_data3d.affine import spacing_zyx
from girih_data3d.layout import file_crc32c, json_crc32c
from girih_data3d.spec import Compression, PrepareSpec

LEVEL = {"lz4hc": 5, "zstd": 3}
"""Compression level of each codec."""
CHUNK = 32
"""Edge of an inner chunk: the best of 16 to 64 for 128^3 and 192^3 patches."""
ORIENTATION = {"z": "inferior-to-superior", "y": "posterior-to-anterior", "x": "left-to-right"}
"""Anatomical direction of rising index, as OME-NGFF RFC-4 names it."""


def write_case(
    folder: Path,
    *,
    volume: Float32[np.ndarray, "c z y x"],
    affine: Float64[np.ndarray, "4 4"],
    spec: PrepareSpec,
    instances: Int32[np.ndarray, "z y x"] | None,
    semantic: Int16[np.ndarray, "z y x"] | None,
    attributes: dict[str, Any],
) -> None:
    """Write a case into a new folder.

    Args:
        folder: where to; must not exist.
        volume: prepared intensities.
        affine: of the prepared grid.
        spec: says how intensities are stored.
        instances: object k of the case has the value k + 1.
        semantic: one number per tissue.
        attributes: kept under "girih", to which "files" and "checksum" are added.

    Raises:
        ValueError: values that the storage type cannot hold.
    """
    stored, scale = quantise(volume, spec)
    group = zarr.create_group(store=str(folder), zarr_format=3)
    _write_array(group, "0", stored, "czyx", {"scale_factor": scale, "add_offset": 0.0}, spec.compression)
    labels = {"instances": instances, "semantic": semantic}
    names = [name for name, array in labels.items() if array is not None]
    if names:
        label_group = group.create_group("labels", attributes={"ome": {"version": "0.5", "labels": names}})
        for name, array in labels.items():
            if array is not None:
                image_label = {"source": {"image": "../../"}}
                ome = {**_multiscales(name, "zyx", affine), "image-label": image_label}
                _write_array(
                    label_group.create_group(name, attributes={"ome": ome}),
                    "0",
                    _narrow(array),
                    "zyx",
                    {},
                    spec.compression,
                )
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "crc32c": file_crc32c(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent != folder
    }
    content = {"ome": _multiscales(str(attributes["case_id"]), "czyx", affine), "girih": {**attributes, "files": files}}
    group.attrs.put({**content, "girih": {**content["girih"], "checksum": json_crc32c(content)}})


def quantise(volume: Float32[np.ndarray, "*shape"], spec: PrepareSpec) -> tuple[Shaped[np.ndarray, "*shape"], float]:
    """Return stored values and the scale that turns them back into intensities.

    int16: value = round(intensity / scale), with the smallest scale quant_step * 2^k at which nothing is clipped, so
    that |value * scale - intensity| <= scale / 2 and 0 stays 0.

    Raises:
        ValueError: float16 cannot hold a value.
    """
    highest = float(np.abs(volume).max())
    if spec.dtype == "float32":
        return volume, 1.0
    if spec.dtype == "float16":
        if highest > float(np.finfo(np.float16).max):
            raise ValueError(f"an intensity of {highest:g} does not fit into float16 (65504)")
        return volume.astype(np.float16), 1.0
    scale = spec.quant_step
    while round(highest / scale) > np.iinfo(np.int16).max:
        scale *= 2
    return np.rint(volume / np.float32(scale)).astype(np.int16), scale


def _write_array(
    group: zarr.Group,
    name: str,
    array: Shaped[np.ndarray, "*shape"],
    axes: str,
    attributes: dict[str, Any],
    compression: Compression = "lz4hc",
) -> None:
    """Write one array as one shard; every chunk is written, even where it holds zeros only."""
    spatial = array.shape[-3:]
    whole = tuple(-(-n // CHUNK) * CHUNK for n in spatial)
    created = group.create_array(
        name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(1,) * (array.ndim - 3) + (CHUNK,) * 3,
        shards=(*array.shape[:-3], *whole),
        compressors=[BloscCodec(cname=compression, clevel=LEVEL[compression], shuffle="shuffle"), Crc32cCodec()],
        fill_value=0,
        dimension_names=tuple(axes),
        attributes=attributes,
        config={"write_empty_chunks": True},
    )
    created[:] = array


def _multiscales(name: str, axes: str, affine: Float64[np.ndarray, "4 4"]) -> dict[str, Any]:
    """Return OME-Zarr 0.5 metadata of a single-scale image; translation = RAS mm of the first voxel."""
    lead = len(axes) - 3
    described = [
        {
            "name": axis,
            "type": "space",
            "unit": "millimeter",
            "orientation": {"type": "anatomical", "value": ORIENTATION[axis]},
        }
        for axis in "zyx"
    ]
    transformations = [
        {"type": "scale", "scale": [1.0] * lead + list(spacing_zyx(affine))},
        {"type": "translation", "translation": [0.0] * lead + affine[:3, 3][::-1].tolist()},
    ]
    image = {
        "name": name,
        "axes": [{"name": "c", "type": "channel"}] * lead + described,
        "datasets": [{"path": "0", "coordinateTransformations": transformations}],
    }
    return {"version": "0.5", "multiscales": [image]}


def _narrow(array: Shaped[np.ndarray, "z y x"]) -> Shaped[np.ndarray, "z y x"]:
    """Return labels in the smallest unsigned type that holds them (signed values stay as they are)."""
    if array.min() < 0:
        return array
    return array.astype(np.min_scalar_type(int(array.max())))
