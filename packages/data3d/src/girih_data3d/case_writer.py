"""Write one prepared case: an OME-Zarr 0.5 group, sharded arrays, checksums over everything."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Bool, Float32, Float64, Int16, Int32, Shaped
from zarr.codecs import BloscCodec, Crc32cCodec

from girih_data3d.affine import spacing_zyx
from girih_data3d.foreground import sample_foreground
from girih_data3d.sealed import seal
from girih_data3d.spec import Compression, PrepareSpec

LEVEL = {"lz4hc": 5, "zstd": 3}
"""Compression level of each codec."""
CHUNK = 32
"""Edge of an inner chunk: the best of 16 to 64 for 128^3 and 192^3 patches."""
ONE_SHARD_BYTES = 2**30
"""Size as stored, before compression, up to which an array is one file."""
SHARD = 512
"""Edge of the shards of a larger array, which hold one channel each."""
ORIENTATION = {"z": "inferior-to-superior", "y": "posterior-to-anterior", "x": "left-to-right"}
"""Anatomical direction of rising index, as OME-NGFF RFC-4 names it."""


def write_case(
    folder: Path,
    *,
    volume: Float32[np.ndarray, "c z y x"],
    affine: Float64[np.ndarray, "4 4"],
    spec: PrepareSpec,
    instances: Sequence[Int32[np.ndarray, "z y x"]],
    semantic: Int16[np.ndarray, "z y x"] | None,
    objects: Sequence[dict[str, Any]],
    attributes: dict[str, Any],
    valid: Bool[np.ndarray, "z y x"] | None = None,
    one_shard_bytes: int = ONE_SHARD_BYTES,
) -> None:
    """Write a case into a new folder; the same input gives the same bytes.

    Args:
        folder: where to; must not exist.
        volume: prepared intensities.
        affine: of the prepared grid.
        spec: says how intensities are stored.
        instances: layers of objects; object k has the value k + 1 in its layer. None: without masks.
        semantic: one number per tissue.
        objects: their records, as `Objects.from_record` takes them; those to ignore come last.
        attributes: kept under "girih", which gets "shape", "objects", "versions", "files" and "checksum" besides.
        valid: which voxels show the patient.
        one_shard_bytes: size up to which an array is one file.

    Raises:
        ValueError: values that the storage type cannot hold.
    """
    stored, scale = quantise(volume, spec)
    group = zarr.create_group(store=str(folder), zarr_format=3)
    write_array(
        group,
        "0",
        stored,
        "czyx",
        {"scale_factor": scale, "add_offset": 0.0},
        compression=spec.compression,
        one_shard_bytes=one_shard_bytes,
    )
    labels: dict[str, Shaped[np.ndarray, "z y x"]] = {layer_name(k): layer for k, layer in enumerate(instances)}
    labels |= {} if semantic is None else {"semantic": semantic}
    labels |= {} if valid is None else {"valid": valid.astype(np.uint8)}
    if labels:
        parent = group.create_group("labels", attributes={"ome": {"version": "0.5", "labels": list(labels)}})
        for name, array in labels.items():
            ome = {**_multiscales(name, "zyx", affine), "image-label": {"source": {"image": "../../"}}}
            write_array(
                parent.create_group(name, attributes={"ome": ome}),
                "0",
                _narrow(array),
                "zyx",
                compression=spec.compression,
                one_shard_bytes=one_shard_bytes,
            )
    case_id = str(attributes["case_id"])
    foreground = sample_foreground(case_id, semantic=semantic, instances=instances, objects=objects)
    if len(foreground):
        write_array(group, "foreground", foreground, ("voxel", "class_zyx"), compression=spec.compression)
    record = {**attributes, "shape": list(volume.shape), "objects": list(objects), "versions": _versions()}
    seal(folder, {"ome": _multiscales(case_id, "czyx", affine), "girih": record})


def layer_name(k: int) -> str:
    """Return the name of an instance layer's group: instances, instances-2, instances-3, ..."""
    return "instances" if k == 0 else f"instances-{k + 1}"


def quantise(volume: Float32[np.ndarray, "*shape"], spec: PrepareSpec) -> tuple[Shaped[np.ndarray, "*shape"], float]:
    """Return stored values and the scale that turns them back into intensities.

    int16: value = round(intensity / scale), with the smallest scale quant_step * 2^k at which nothing is clipped, so
    that |value * scale - intensity| <= scale / 2 and 0 stays 0.

    Raises:
        ValueError: float16 cannot hold a value.
    """
    highest = max(volume.max(), -volume.min())
    if spec.dtype == "float32":
        return volume, 1.0
    if spec.dtype == "float16":
        if highest > float(np.finfo(np.float16).max):
            raise ValueError(f"an intensity of {highest:g} does not fit into float16 (65504)")
        return volume.astype(np.float16), 1.0
    scale = spec.quant_step
    with np.errstate(over="ignore"):  # infinite is above the limit too
        while np.rint(highest / np.float32(scale)) > np.iinfo(np.int16).max:  # in float32, as below
            scale *= 2
    stored = np.empty(volume.shape, np.int16)
    for index in np.ndindex(*volume.shape[:-2]):  # slice by slice: no copy of the volume on the way
        stored[index] = np.rint(volume[index] / np.float32(scale))
    return stored, scale


def write_array(
    group: zarr.Group,
    name: str,
    array: Shaped[np.ndarray, "*shape"],
    axes: Sequence[str],
    attributes: dict[str, Any] | None = None,
    *,
    compression: Compression = "lz4hc",
    one_shard_bytes: int = ONE_SHARD_BYTES,
) -> None:
    """Write an array in shards of one channel, or in one shard if it is small; a table is one chunk.

    Every chunk is written, even where it holds zeros only.
    """
    if array.ndim < 3:
        chunks = shards = array.shape
    else:
        lead, spatial = array.shape[:-3], array.shape[-3:]
        chunks = (1,) * len(lead) + (CHUNK,) * 3
        shards = lead + tuple(-(-n // CHUNK) * CHUNK for n in spatial)
        if array.nbytes > one_shard_bytes:
            shards = (1,) * len(lead) + tuple(min(n, SHARD) for n in shards[-3:])
    created = group.create_array(
        name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        shards=shards,
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


@cache
def _versions() -> dict[str, str]:
    """Return what wrote a case."""
    return {name: version(name) for name in ("girih-data3d", "numpy", "scipy", "zarr", "numcodecs")}
