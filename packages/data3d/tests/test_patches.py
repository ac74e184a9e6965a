"""Any patch equals what numpy and zarr-python give, bit for bit; lazy views read what they must, memory is bounded."""

import itertools
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.case_writer import quantise

SHAPES = {
    ("int16", 1): (33, 1, 70),
    ("float16", 2): (64, 32, 31),
    ("int16", 3): (40, 37, 34),
    ("float32", 4): (5, 65, 33),
}


@pytest.fixture(scope="module")
def made(
    small_case: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], tuple[d3.Case, np.ndarray]]:
    """Cases of every type and of 1 to 4 channels, and what they have to hold; the last one has a shard per channel."""
    rng, cases = np.random.default_rng(0), {}
    for (dtype, channels), shape in SHAPES.items():
        root, spec = tmp_path_factory.mktemp("patches"), d3.PrepareSpec(dtype=dtype)
        volume = rng.normal(0, 30, (channels, *shape)).astype(np.float32)
        small_case(root, "x", volume, spec=spec, one_shard_bytes=1 if channels == 4 else 2**30)
        cases[dtype, channels] = (d3.Store.open(root)["x"], quantise(volume, spec)[0])
    return cases


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(SHAPES)),
    st.tuples(*[st.integers(-40, 80)] * 3),
    st.tuples(*[st.integers(1, 70)] * 3),
    st.sampled_from([None, 0, -1.5, 2.25]),
)
def test_every_patch_equals_numpy_and_zarr(
    made: dict[tuple[str, int], tuple[d3.Case, np.ndarray]],
    which: tuple[str, int],
    start: tuple[int, int, int],
    size: tuple[int, int, int],
    padding: float | None,
) -> None:
    case, stored = made[which]
    raw = case.read_patch(start, size, pad_value=padding, raw=True)
    scaled = case.read_patch(start, size, pad_value=padding)
    assert raw.dtype == stored.dtype
    assert scaled.dtype == np.float32
    outside = 0 if padding is None else padding / case.scale
    wanted = np.full((len(stored), *size), outside, stored.dtype)
    low = [max(0, a) for a in start]
    high = [min(n, a + s) for a, s, n in zip(start, size, stored.shape[1:], strict=True)]
    inside = all(a < b for a, b in zip(low, high, strict=True))
    if inside:
        into = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
        taken = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        theirs = zarr.open_array(case.folder / "0", mode="r")[(slice(None), *taken)]
        np.testing.assert_array_equal(theirs, stored[(slice(None), *taken)])
        wanted[(slice(None), *into)] = theirs
    np.testing.assert_array_equal(raw, wanted)
    np.testing.assert_array_equal(scaled, wanted.astype(np.float32) * np.float32(case.scale))


def test_padding_that_int16_cannot_hold(prepared: d3.Store) -> None:
    case = prepared["free"]
    assert (case.read_patch((99, 0, 0), (1, 1, 1), pad_value=-1024) == -1024).all()
    with pytest.raises(ValueError, match="pad_value is -1024, wanted -64 to 63"):
        case.read_patch((99, 0, 0), (1, 1, 1), pad_value=-1024, raw=True)


WINDOWS: list[dict[str, Any]] = [
    {},
    {"z": 3},
    {"channel": 1, "z": slice(30, 2, -7), "y": [7, 1, 1], "x": slice(None, None, 3)},
    {"channel": [2, 0], "y": -1},
    {"z": slice(4, 4)},
    {"x": np.array([True] * 3 + [False] * 31)},
]


@pytest.mark.parametrize("window", WINDOWS)
def test_lazy_array_equals_the_loaded_one(
    made: dict[tuple[str, int], tuple[d3.Case, np.ndarray]], window: dict[str, Any]
) -> None:
    case = made["int16", 3][0]
    whole, lazy = case.to_xarray(), case.to_xarray(lazy=True)
    assert (lazy.shape, lazy.dtype, lazy.attrs.keys()) == (whole.shape, np.float32, whole.attrs.keys())
    xr.testing.assert_identical(lazy.isel(window).load(), whole.isel(window))
    xr.testing.assert_identical(pickle.loads(pickle.dumps(lazy)).isel(window).load(), whole.isel(window))


def test_lazy_array_reads_only_what_is_asked_for(
    made: dict[tuple[str, int], tuple[d3.Case, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = made["int16", 3][0]
    asked = []
    real = type(case._image).read_into

    def spy(reader: Any, out: np.ndarray, start: tuple[int, ...], **scaling: float) -> None:
        asked.append((start, out.shape))
        real(reader, out, start, **scaling)

    monkeypatch.setattr(type(case._image), "read_into", spy)
    view = case.to_xarray(lazy=True).sel(z=slice(4.0, 9.0)).isel(channel=1, y=slice(10, 20, 3))
    assert asked == []
    assert view.shape == (3, 4, 34)
    view.load()
    assert asked == [((1, 2, 10, 0), (1, 3, 10, 34))]


def test_same_patch_from_every_corner(prepared: d3.Store) -> None:
    case = prepared["case1"]
    volume = np.pad(case.to_xarray().values, [(0, 0)] + [(5, 5)] * 3)
    for start in itertools.product(*((-5, n - 6) for n in case.shape[1:])):
        z, y, x = (slice(a + 5, a + 15) for a in start)
        np.testing.assert_array_equal(case.read_patch(start, (10, 10, 10)), volume[:, z, y, x][:, :, :, :10])


@pytest.mark.parametrize(("cases", "patches"), [(20, 500), pytest.param(50, 5000, marks=pytest.mark.long)])
def test_memory_and_open_files_stay_bounded(
    small_case: Callable[..., Path], tmp_path: Path, cases: int, patches: int
) -> None:
    rng = np.random.default_rng(0)
    for n in range(cases):
        small_case(tmp_path, f"c{n:02d}", rng.normal(0, 1, (1, 32, 40, 48)).astype(np.float32))
    store = d3.Store.open(tmp_path)
    store.files.limit = 8

    def read(times: int) -> None:
        for n in rng.integers(0, cases, times).tolist():
            store[f"c{n:02d}"].read_patch((4, 4, 4), (24, 24, 24))

    read(patches // 5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handles = open_handles()
    read(patches)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB on Linux
    assert open_handles() <= handles


def open_handles() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
