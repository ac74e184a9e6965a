"""Whatever is wrong with a file is said before anything is written: the file, what was found, what was wanted."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

import girih_data3d as d3

SHAPE = (5, 6, 7)
SPEC = d3.PrepareSpec()


def image(dtype: Any = np.int16) -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


DIRECTIONS = b"space directions: (1,0,0) (0,1,0) (0,0,1)\n"


def nifti(array: np.ndarray | None = None, *, kind: Any = nib.Nifti1Image, **fields: Any) -> Callable[[Path], None]:
    """A file with these header fields, written over what nibabel would refuse to write."""

    def make(path: Path) -> None:
        made = kind(image() if array is None else array, np.eye(4))
        plain = path.with_name("plain.nii")
        nib.save(made, plain)
        content = bytearray(plain.read_bytes())
        plain.unlink()
        layout = made.header.template_dtype
        for name, value in fields.items():
            field, offset = layout.fields[name][:2]
            written = np.asarray(value, field.base.newbyteorder("<")).tobytes()
            content[offset : offset + len(written)] = written
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)

    return make


def content(made: Callable[[Path], None], change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A good file whose bytes are changed."""

    def make(path: Path) -> None:
        made(path)
        path.write_bytes(change(path.read_bytes()))

    return make


def raw(text: bytes) -> Callable[[Path], int]:
    return lambda path: path.write_bytes(text)


def itk(array: np.ndarray, change: Callable[[bytes], bytes] = bytes, **kwargs: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        sitk.WriteImage(sitk.GetImageFromArray(array, **kwargs), str(path))
        path.write_bytes(change(path.read_bytes()))

    return make


def loop(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def odd(value: float, dtype: Any = np.float32) -> np.ndarray:
    array = image(dtype)
    array[1, 2, 3] = value
    return array


QFORM = {"sform_code": 0, "qform_code": 1}
NOISE = np.random.default_rng(0).bytes(4000)
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "4d.nii": (nifti(np.zeros((*SHAPE, 2), np.int16)), "a fourth axis of 2 frames"),
    "5d.nii": (nifti(np.zeros((*SHAPE, 1, 3), np.int16)), r"shape \(5, 6, 7, 1, 3\) has 5 axes"),
    "2d.nii": (nifti(np.zeros((5, 6), np.int16)), "has 2 axes, wanted 3"),
    "rgb.nii": (nifti(np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), "not a plain number"),
    "complex.nii.gz": (nifti(image(np.complex64)), "complex64 is not a plain number"),
    "bits.nii": (nifti(datatype=1, bitpix=1), "data code 1 not supported|data dtype .* not supported"),
    "unknown-type.nii": (nifti(datatype=77), "77"),
    "no-voxels.nii": (nifti(dim=[3, 5, 0, 7]), r"shape \(5, 0, 7\) has an empty axis"),
    "negative-size.nii": (nifti(dim=[3, 5, -6, 7]), r"\(5, -6, 7\) has an empty axis"),
    "no-axes.nii": (nifti(dim=[0]), "has 1 axes"),
    "trillions.nii": (nifti(dim=[3, 30000, 30000, 30000]), "27000000000000 voxels, wanted at most"),
    "trillions.nii.gz": (nifti(dim=[3, 30000, 30000, 30000]), "wanted at most 2147483648"),
    "exabytes.nii": (nifti(kind=nib.Nifti2Image, dim=[3, 2**50, 6, 7]), "voxels, wanted at most"),
    "gigabytes.nii": (nifti(dim=[3, 1000, 1000, 1000]), "truncated: 772 bytes on disk, .* 2000000352 bytes"),
    "gigabytes.nii.gz": (nifti(dim=[3, 1000, 1000, 1000]), "truncated: .* describes 2000000352 bytes"),
    "frames.nii.gz": (nifti(dim=[4, 5, 6, 7, 30000]), "a fourth axis of 30000 frames"),
    "far-offset.nii.gz": (nifti(vox_offset=1e9), "truncated: .* describes 10000004"),
    "no-offset.nii": (nifti(vox_offset=np.inf), "vox_offset is inf, wanted where the voxels begin"),
    "unknown-place.nii": (nifti(sform_code=113, pixdim=[1, 0, 1, 1]), "sform_code is 113"),
    "low-offset.nii": (nifti(vox_offset=32), "vox offset 32 too low"),
    "bomb.nii.gz": (
        content(nifti(), lambda good: gzip.compress(gzip.decompress(good) + bytes(64 << 20), 1)),
        "more than .* bytes inside, but the header describes 772 bytes",
    ),
    "nan.nii": (nifti(odd(np.nan)), "1 of 210 voxels are NaN or infinite"),
    "infinite.nii.gz": (nifti(odd(-np.inf)), "1 of 210 voxels are NaN or infinite"),
    "too-large.nii": (nifti(odd(1e300, np.float64)), "1 of 210 voxels are NaN or infinite, as float32"),
    "scaled-too-large.nii": (nifti(scl_slope=3e38, scl_inter=0), "NaN or infinite, as float32"),
    "no-intercept.nii": (nifti(scl_slope=2, scl_inter=np.nan), "invalid intercept nan"),
    "zero-spacing.nii": (nifti(**QFORM, pixdim=[1, 1, 0, 1]), r"voxel size \[1.0, 0.0, 1.0\], wanted three positive"),
    "negative-spacing.nii": (
        nifti(**QFORM, pixdim=[1, 1, -2, 1]),
        r"voxel size \[1.0, -2.0, 1.0\], wanted three positive",
    ),
    "huge-spacing.nii": (nifti(**QFORM, pixdim=[1, 1, 1, 1e30]), "wanted above 0 and below 50"),
    "nan-spacing.nii": (nifti(**QFORM, pixdim=[1, 1, np.nan, 1]), r"voxel size \[1.0, nan, 1.0\]"),
    "no-rotation.nii": (nifti(**QFORM, quatern_b=1, quatern_c=1), "w2 should be positive"),
    "metres.nii": (nifti(xyzt_units=1), r"\[1000.0, 1000.0, 1000.0\] mm, wanted above 0 and below 50"),
    "no-unit.nii": (nifti(xyzt_units=5), "xyzt_units is 5"),
    "no-place.nii": (nifti(sform_code=0, qform_code=0), "sform_code and qform_code are 0"),
    "flat.nii": (nifti(srow_z=[0, 0, 0, 0]), "wanted above 0"),
    "singular.nii": (nifti(srow_y=[1, 0, 0, 0], srow_x=[1, 0, 0, 0]), "wanted above 0|singular"),
    "dependent.nii": (nifti(srow_x=[1, 1, 0, 0], srow_y=[1, 1, 0, 0]), "affine is singular"),
    "sheared.nii": (nifti(srow_x=[1, 0.2, 0, 0]), r"affine is sheared: cosine 0.196"),
    "nan-place.nii": (nifti(srow_x=[1, 0, 0, np.nan]), "affine has non-finite values"),
    "pair.nii": (nifti(magic=b"ni1\0"), "header of a pair"),
    "cut.nii": (content(nifti(), lambda good: good[:-1]), "truncated: 771 bytes on disk, .* 772 bytes"),
    "cut-header.nii": (content(nifti(), lambda good: good[:300]), "it begins with"),
    "checksum.nii.gz": (content(nifti(), lambda good: good[:-8] + bytes(8)), "CRC check failed"),
    "tail.nii.gz": (content(nifti(), lambda good: good + b"more"), "Not a gzipped file"),
    "empty.nii": (raw(b""), "it begins with b''"),
    "empty.nii.gz": (raw(b""), "it begins with b''"),
    "text.nii": (raw(b"hello"), "it begins with b'hello'"),
    "text.nii.gz": (raw(b"hello"), "Not a gzipped file"),
    "packed-text.nii.gz": (raw(gzip.compress(b"hello")), "it begins with b'hello'"),
    "noise.nii": (raw(NOISE), "it begins with"),
    "noise.nii.gz": (raw(gzip.compress(NOISE)), "it begins with"),
    "folder.nii.gz": (Path.mkdir, "no DICOM series in this folder"),
    "loop.nii.gz": (loop, "not readable|no such file"),
    "broken-link.nii": (lambda path: path.symlink_to("nowhere"), "not readable|no such file"),
    "absent.nii": (lambda path: None, "not readable|no such file"),
    "scan.txt": (raw(b"hello"), "unknown format, wanted one of"),
    "empty.nrrd": (raw(b""), "not readable"),
    "noise.mha": (raw(NOISE), "not readable"),
    "cut.nrrd": (itk(image(), lambda good: good[:-1]), "truncated: .*got only 209"),
    "cut.mha": (itk(image(), lambda good: good[:-1]), "not readable, or truncated"),
    "no-place.nrrd": (
        itk(image(), lambda good: good.replace(b"space: left-posterior-superior", b"space dimension: 3")),
        "space is missing",
    ),
    "trillions.nrrd": (
        itk(image(), lambda good: good.replace(b"sizes: 7 6 5", b"sizes: 70000 60000 5000")),
        "wanted at most",
    ),
    "gigabytes.mha": (
        itk(image(), lambda good: good.replace(b"DimSize = 7 6 5", b"DimSize = 1200 1200 1200")),
        "truncated",
    ),
    "no-spacing.nrrd": (
        itk(image(), lambda good: good.replace(DIRECTIONS, b"")),
        "the header does not say how large a voxel is, wanted 'space directions'",
    ),
    **{
        f"{name}.nrrd": (itk(image(), lambda good, line=line: good.replace(DIRECTIONS, line)), words)
        for name, line, words in (
            ("none-spacing", b"space directions: none none none\n", "says that a voxel is 'none none none', wanted"),
            ("nan-spacing", b"spacings: nan nan nan\n", "says that a voxel is 'nan nan nan', wanted"),
            ("remark-spacing", b"spacings:=0\n", "does not say how large a voxel is, wanted 'space directions'"),
        )
    },
    "no-spacing.mha": (
        itk(
            image(), lambda good: good.replace(b"ElementSpacing = 1 1 1\n", b"") + b"\nElementSpacing = 1 1 1\n"
        ),  # among the voxels
        "the header does not say how large a voxel is, wanted 'ElementSpacing'",
    ),
    "zero-spacing.mha": (
        itk(image(), lambda good: good.replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 0 1")),
        "Zero-valued spacing",
    ),
    "singular.mha": (
        itk(image(), lambda good: good.replace(b"TransformMatrix = 1 0 0 0 1 0", b"TransformMatrix = 1 0 0 1 0 0")),
        "determinant is 0",
    ),
    "4d.mha": (
        itk(np.zeros((2, 3, 4, 5), np.int16), isVector=False),
        "4 axes, wanted 3; a time axis is read from NIfTI only",
    ),
    "2d.nrrd": (itk(np.zeros((4, 5), np.int16)), "has 2 axes"),
    "rgb.mha": (itk(np.zeros((3, 4, 5, 3), np.uint8), isVector=True), "3 numbers per voxel, wanted 1"),
    "complex.nrrd": (itk(image(np.complex64)), "numbers per voxel|plain number"),
    "nan.mha": (itk(odd(np.nan)), "1 of 210 voxels are NaN"),
    "elsewhere.mhd": (
        raw(
            b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = /etc/passwd\n"
        ),
        "voxels are in '/etc/passwd', wanted the name of one file beside it",
    ),
    "above.nhdr": (
        raw(b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: ../x.raw\n"),
        r"voxels are in '\.\./x\.raw'",
    ),
    "twice.mhd": (
        raw(
            b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"
            b"Comment = ElementDataFile = a.raw\nElementDataFile : ../secret.raw\n"
        ),
        "says 2 times where its voxels are",
    ),
    "colon.mhd": (
        raw(b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile : ../x.raw\n"),
        r"voxels are in '\.\./x\.raw'",
    ),
    "decoy.nhdr": (
        raw(
            b"NRRD0004\nElementDataFile = b.raw:=x\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\r"
            b"data file: ../x.raw\n"
        ),
        r"voxels are in '\.\./x\.raw'",
    ),
    "list.mhd": (
        raw(
            b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = LIST\na.raw\n"
        ),
        "voxels are in 'LIST'",
    ),
}
for cut in (1, 5, 15, 50, 100, 150, 200):
    HOSTILE[f"cut-{cut}.nii.gz"] = (
        content(nifti(odd(0.5)), lambda good, cut=cut: good[:cut]),
        "truncated|begins with|Not a gzipped file",
    )
for cut in (1, 4, 7, 8, 9, 20):
    HOSTILE[f"cut-end-{cut}.nii.gz"] = (content(nifti(), lambda good, cut=cut: good[:-cut]), "truncated")

"""Name of a file -> how it is made, and what is said about it."""

LABELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "shape.nii": (
        nifti(np.zeros((4, 6, 7), np.uint8)),
        r"canonical shape \(z, y, x\) \(7, 6, 4\), the scan's is \(7, 6, 5\)",
    ),
    "place.nii": (nifti(srow_x=[1, 0, 0, 0.01]), "canonical affine .* the scan's is"),
    "spacing.nii.gz": (nifti(srow_x=[1.01, 0, 0, 0]), "canonical affine"),
    "fraction.nii": (nifti(odd(0.5)), "1 labels are not whole numbers, for example 0.5"),
    "nan.nii": (nifti(odd(np.nan)), "1 of 210 voxels are NaN"),
    "negative.nii": (nifti(odd(-1)), "labels from -1"),
    "huge.nii": (nifti(odd(2.0**40, np.float64)), "wanted 0 to 2147483647"),
    "cut.nii.gz": (content(nifti(), lambda good: good[:-9]), "truncated"),
    "4d.nii": (nifti(np.zeros((*SHAPE, 2), np.uint8)), "a fourth axis of 2 frames"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def failed(folder: Path) -> dict[str, str]:
    """The reasons after all these files went through `prepare_many`, which may leave nothing of them."""
    sources = []
    for name, (make, _) in HOSTILE.items():
        make(folder / name)
        sources.append(d3.CaseSource(name, (folder / name,)))
    nifti()(folder / "image.nii")
    for name, (make, _) in LABELS.items():
        path = folder / f"label-{name}"
        make(path)
        sources.append(d3.CaseSource(f"instances {name}", (folder / "image.nii",), instances=(path,)))
        sources.append(d3.CaseSource(f"semantic {name}", (folder / "image.nii",), semantic=path))
    report = d3.prepare_many(d3.Dataset("x", ("c",), tuple(sources)), folder / "out", SPEC, workers=0)
    assert report.done == report.skipped == []
    assert not list(folder.glob("out/cases/*"))
    assert not list(folder.glob("out/.tmp/*"))
    assert d3.Store.open(folder / "out").case_ids == ()
    return report.failed


def check(reason: str, path: Path, message: str) -> None:
    assert reason.startswith(f"ScanError: {path}: ")
    with pytest.raises(d3.ScanError, match=message):
        raise d3.ScanError(reason)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_image(folder: Path, failed: dict[str, str], name: str) -> None:
    check(failed[name], folder / name, HOSTILE[name][1])


@pytest.mark.parametrize("role", ["instances", "semantic"])
@pytest.mark.parametrize("name", LABELS)
def test_hostile_labels(folder: Path, failed: dict[str, str], name: str, role: str) -> None:
    check(failed[f"{role} {name}"], folder / f"label-{name}", LABELS[name][1])


def test_the_untouched_file_is_fine(tmp_path: Path) -> None:
    """The files above differ from this one by their fault only."""
    for name in ("good.nii", "good.nii.gz"):
        nifti()(tmp_path / name)
        assert d3.read_scan(tmp_path / name).shape == (1, 7, 6, 5)
    for name in ("good.nrrd", "good.mha"):
        itk(image())(tmp_path / name)
        assert d3.read_scan(tmp_path / name).shape == (1, 5, 6, 7)
    nifti(**QFORM)(tmp_path / "qform.nii")
    assert d3.read_scan(tmp_path / "qform.nii").attrs["spacing_zyx_mm"] == (1, 1, 1)
    nifti(xyzt_units=3, srow_x=[900, 0, 0, 0], srow_y=[0, 900, 0, 0], srow_z=[0, 0, 900, 0])(tmp_path / "micron.nii")
    assert d3.read_scan(tmp_path / "micron.nii").attrs["spacing_zyx_mm"] == pytest.approx((0.9, 0.9, 0.9))
