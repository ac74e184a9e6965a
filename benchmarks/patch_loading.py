"""Speed and size of the store: one patch against zarr-python and blosc2, a loader against TorchIO and MONAI.

    python benchmarks/patch_loading.py                 # prints Markdown; about five minutes on two cores
    python benchmarks/patch_loading.py --quick         # a tenth of the patches

Reading: every reader reads the same random windows of one synthetic CT, in turns, in one process; the figure is the
median CPU time (user + system, all threads) of a round. Before that, all readers must return the same values. blosc2
has the parameters of nnU-Net (lz4hc 5, 32^3 blocks) and of nnssl (zstd 8, 16^3 blocks), both on float32, as they store.
The bytes of a cold read are counted by the kernel, so that the disk has to be a real one.
Loaders: random 128^3 patches with one third around an object, from the same scans, each system from its usual files.
Readers and loaders that are not installed are left out (pip install blosc2 torchio monai torch).
"""

import argparse
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import zarr
from scipy import ndimage

import girih_data3d as d3

Window = tuple[tuple[int, int, int], int]
Reader = Callable[[tuple[int, int, int], int], np.ndarray]
GATES: list[tuple[str, bool]] = []
"""What was compared with a bound, and whether it was kept."""


def synthetic_ct(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A chest-like CT in HU, and its nodules: soft tissue, fat, lungs with vessels, spine, ribs, blur, noise, -1024."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    z, y, x = z[:, None, None], y[:, None], x
    small = tuple(max(2, n // 24) for n in shape)
    factors = [n / s for n, s in zip(shape, small, strict=True)]
    field = ndimage.zoom(rng.normal(0, 1, small).astype(np.float32), factors, order=1)
    hu = 40 + 15 * field
    body = (x / 0.9) ** 2 + (y / 0.65) ** 2 + 0 * z
    hu = np.where(body > 0.85, -100 + 10 * field, hu)
    labels = np.zeros(shape, np.uint8)
    for side in (-0.4, 0.4):
        lung = ((x - side) / 0.3) ** 2 + (y / 0.45) ** 2 + (z / 0.9) ** 2
        hu = np.where(lung < 1, -850 + 20 * field, hu)
        for _ in range(40):  # vessels
            a, b, r = side + rng.normal(0, 0.12), rng.normal(0, 0.18), rng.uniform(0.004, 0.012)
            line = (x - a - rng.normal(0, 0.1) * z) ** 2 + (y - b - rng.normal(0, 0.1) * z) ** 2
            hu = np.where((line < r**2) & (lung < 1), 30.0, hu)
    hu = np.where((x / 0.08) ** 2 + ((y - 0.45) / 0.08) ** 2 + 0 * z < 1, 500.0, hu)
    ribs = (np.abs(body - 0.8) < 0.03) & (np.sin(z * 40 + 4 * np.abs(x)) > 0.5)
    hu = np.where(ribs, 600.0, hu).astype(np.float32)
    for number in range(int(rng.integers(2, 7))):
        centre = [rng.uniform(0.3, 0.7) * n for n in shape]
        radius = rng.uniform(3, 9)
        box = tuple(slice(max(0, int(c - 12)), int(c + 12)) for c in centre)
        grid = np.ogrid[box]
        ball = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < radius**2
        hu[box][ball] = 40
        labels[box][ball] = number + 1
    hu = ndimage.gaussian_filter(hu, (0, 0.7, 0.7))
    hu += ndimage.gaussian_filter(rng.normal(0, 1, shape).astype(np.float32), (0, 0.6, 0.6)) * 48
    hu = np.where((x**2 + y**2 < 1) & (z > -2), hu, -1024)
    return np.rint(hu).astype(np.float32), labels


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def has(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def blosc2_reader(volume: np.ndarray, path: Path, *, nnssl: bool) -> Reader:
    import blosc2

    blosc2.set_nthreads(1)
    filters = {"codec": blosc2.Codec.ZSTD, "clevel": 8} if nnssl else {"codec": blosc2.Codec.LZ4HC, "clevel": 5}
    chunks, blocks = ((80, 64, 64), (16,) * 3) if nnssl else ((96, 128, 128), (32,) * 3)
    chunks = tuple(min(c, n) for c, n in zip(chunks, volume.shape, strict=True))
    blocks = tuple(min(b, c) for b, c in zip(blocks, chunks, strict=True))
    params = {**filters, "nthreads": 1, "filters": [blosc2.Filter.SHUFFLE], "typesize": 4}
    blosc2.asarray(volume, urlpath=str(path), chunks=chunks, blocks=blocks, cparams=params, mode="w")
    opened = blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
    return lambda start, n: opened[tuple(slice(a, a + n) for a in start)]


def interleaved(readers: dict[str, Reader], windows: list[Window], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds per patch of each reader, round by round, the order turning."""
    found: dict[str, list[float]] = {name: [] for name in readers}
    names = list(readers)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = cpu()
            for start, n in windows:
                readers[name](start, n)
            found[name].append((cpu() - began) / len(windows) * 1e3)
    return found


def reading(folder: Path, shape: tuple[int, int, int], patches: int, rounds: int) -> None:
    hu, _ = synthetic_ct(shape)
    moved = ndimage.shift(hu, 0.37, order=1, mode="nearest")  # continuous values, as after resampling
    scaled = (moved - moved.mean()) / moved.std()
    d3.write_nifti(scaled, folder / "ct.nii", affine=np.eye(4))
    dataset = d3.read_manifest(folder / "ct.nii")
    cases = {}
    for dtype in ("int16", "float32"):
        spec = d3.PrepareSpec(target_zyx_mm=None, normalisation="none", dtype=dtype, crop=None)
        d3.prepare_many(dataset, folder / dtype, spec, workers=0)
        cases[dtype] = d3.Store.open(folder / dtype)["ct"]
    mapped = d3.Store.open(folder / "int16", io="mmap")["ct"]
    arrays = {dtype: zarr.open_array(case.folder / "0", mode="r") for dtype, case in cases.items()}
    np.save(folder / "ct.npy", scaled)
    npy = np.load(folder / "ct.npy", mmap_mode="r")

    def ours(case: d3.Case, *, raw: bool) -> Reader:
        return lambda start, n: case.read_patch(start, (n, n, n), raw=raw)

    def by_zarr(array: zarr.Array) -> Reader:
        return lambda start, n: array[(slice(None), *(slice(a, a + n) for a in start))]

    readers: dict[str, Reader] = {
        "girih int16, raw": ours(cases["int16"], raw=True),
        "girih int16 -> float32": ours(cases["int16"], raw=False),
        "girih int16 -> float32, mmap": ours(mapped, raw=False),
        "girih float32": ours(cases["float32"], raw=False),
        "zarr-python int16, raw": by_zarr(arrays["int16"]),
        "zarr-python float32": by_zarr(arrays["float32"]),
        "npy float32, mmap": lambda start, n: np.array(npy[tuple(slice(a, a + n) for a in start)]),
    }
    if has("blosc2"):
        readers["blosc2 (nnU-Net) float32"] = blosc2_reader(scaled, folder / "nnunet.b2nd", nnssl=False)
        readers["blosc2 (nnssl) float32"] = blosc2_reader(scaled, folder / "nnssl.b2nd", nnssl=True)

    rng = np.random.default_rng(1)
    step = cases["int16"].scale
    for start, n in random_windows(rng, shape, 20, 64):  # the gate: all readers agree
        exact = scaled[tuple(slice(a, a + n) for a in start)]
        for name, read in readers.items():
            found = read(start, n).reshape(n, n, n)
            found = found * np.float32(step) if "raw" in name else found
            limit = step / 2 * 1.001 if "int16" in name else 0
            if np.abs(found - exact).max() > limit:
                raise SystemExit(f"{name}: wrong values at {start}")

    print(f"## One patch, {shape} voxels, CPU ms (median of {rounds} interleaved rounds of {patches} patches)\n")
    peers = ("blosc2 (nnU-Net)", "blosc2 (nnssl)", "zarr-python")
    heads = [f"{n}^3 {what}" for n in (128, 192) for what in ("ms", *(f"vs {peer}" for peer in peers))]
    print(f"| reader | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 1) + "|")
    columns = {n: interleaved(readers, random_windows(rng, shape, patches, n), rounds) for n in (128, 192)}
    for name in readers:
        cells = []
        for times in columns.values():
            own = times[name]
            zarr_name = "zarr-python int16, raw" if "int16" in name else "zarr-python float32"
            cells.append(f"{statistics.median(own):.2f}")
            others = ("blosc2 (nnU-Net) float32", "blosc2 (nnssl) float32", zarr_name)
            cells += [f"{ratio(own, times[other]):.2f}" if other in times else "" for other in others]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\nA ratio is the median of the rounds' ratios; below 1 means less CPU time than the other.\n")
    sizes = {"girih int16": size_of(cases["int16"].folder), "girih float32": size_of(cases["float32"].folder)}
    sizes |= {f.name: size_of(f) for f in (folder / "nnunet.b2nd", folder / "nnssl.b2nd") if f.exists()}
    own, raw = (columns[128][f"girih int16{how}"] for how in (" -> float32", ", raw"))
    gate("128^3 raw, zarr-python / girih", ratio(columns[128]["zarr-python int16, raw"], raw), at_least=4)
    for peer, limit in (("nnU-Net", 1.6), ("nnssl", 0.8)):
        if f"blosc2 ({peer}) float32" in columns[128]:
            gate(f"128^3, girih / blosc2 ({peer})", ratio(own, columns[128][f"blosc2 ({peer}) float32"]), at_most=limit)
    if "nnunet.b2nd" in sizes:
        gate("bytes, girih int16 / blosc2 (nnU-Net)", sizes["girih int16"] / sizes["nnunet.b2nd"], at_most=0.45)
    print("Bytes: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()) + "\n")
    cold(folder, shape, patches)


def random_windows(rng: np.random.Generator, shape: tuple[int, int, int], count: int, n: int) -> list[Window]:
    starts = [tuple(int(rng.integers(0, e - n + 1)) for e in shape) for _ in range(count)]
    return [((z, y, x), n) for z, y, x in starts]


def ratio(own: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(own, other, strict=True))


def gate(what: str, found: float, *, at_least: float = 0.0, at_most: float = float("inf")) -> None:
    """Note whether a ratio is within its bound; the script fails at its end if one was not."""
    bound = f">= {at_least:g}" if at_least else f"<= {at_most:g}"
    GATES.append((f"{what} | {bound} | {found:.2f}", at_least <= found <= at_most))


def size_of(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def cold(folder: Path, shape: tuple[int, int, int], patches: int) -> None:
    """Bytes from the disk per patch, nothing being cached, over the compressed bytes of the touched chunks."""
    shutil.copytree(folder / "int16", folder / "cold")  # files that nobody has mapped can be dropped from the cache
    case = d3.Store.open(folder / "cold")["ct"]
    shard = next(p for p in (case.folder / "0" / "c").rglob("*") if p.is_file())
    content = shard.read_bytes()
    grid = [-(-n // 32) for n in shape]
    index = np.frombuffer(content[-(int(np.prod(grid)) * 16 + 4) : -4], "<u8").reshape(*grid, 2)
    read, needed, wall = [], [], []
    for start, n in random_windows(np.random.default_rng(2), shape, min(patches, 20), 128):
        handle = os.open(shard, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
        before, began = disk_bytes(), time.perf_counter()
        case.read_patch(start, (n, n, n))
        wall.append(time.perf_counter() - began)
        read.append(disk_bytes() - before)
        touched = index[tuple(slice(a // 32, (a + n - 1) // 32 + 1) for a in start)]
        needed.append(int(touched[..., 1].sum()))
    share = sum(read) / sum(needed)
    if share:
        gate("cold 128^3, bytes read / needed", share, at_most=2)
    print(
        f"Cold, 128^3: {np.mean(read) / 1e6:.2f} MB read of {np.mean(needed) / 1e6:.2f} MB needed ({share:.2f}x), "
        f"{np.median(wall) * 1e3:.1f} ms wall. (0.00x: this file system does not drop its cache.)\n"
    )


def disk_bytes() -> int:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def loaders(folder: Path, patches: int, workers: int) -> None:
    """Patches per second of whole loaders, one third of the patches around an object."""
    size, count = 128, 4
    folder.mkdir()
    cases = []
    for number in range(count):
        hu, labels = synthetic_ct((200, 352, 352), seed=number)
        d3.write_nifti(hu, folder / f"{number}.nii.gz", affine=np.eye(4))
        d3.write_nifti(labels, folder / f"{number}_objects.nii.gz", affine=np.eye(4))
        present = [int(i) for i in np.unique(labels) if i]
        cases.append(
            d3.CaseSource(
                f"c{number}",
                (folder / f"{number}.nii.gz",),
                instances=(folder / f"{number}_objects.nii.gz",),
                instance_classes=dict.fromkeys(present, 0),
            )
        )
    spec = d3.PrepareSpec(target_zyx_mm=None, crop=None)
    d3.prepare_many(d3.Dataset("ct", ("nodule",), tuple(cases)), folder / "prepared", spec, workers=0)
    # name -> (loader, patches until caches and queues are in their steady state, the smallest fair count of patches)
    rows = {
        "girih": (girih_loader(folder, size, workers), 1, 1),
        "girih, raw int16": (girih_loader(folder, size, workers, raw=True), 1, 1),
    }
    if has("monai"):  # the first epoch fills the cache on disk
        rows["MONAI PersistentDataset (4 patches a scan)"] = (monai_loader(folder, size, count, workers), 16, 16)
    if has("torchio"):  # a queue of 32 patches is filled whenever it is empty
        rows["TorchIO Queue (8 patches a scan)"] = (torchio_loader(folder, size, count, workers), 32, 32)
    print(f"## Loader, {count} scans of 200 x 352 x 352, {size}^3 patches, workers {workers}\n")
    print("| system | first patch s | patches/s | girih is |\n|---|---|---|---|")
    ours = None
    for name, (start, warm, least) in rows.items():
        began = time.perf_counter()
        stream = start()
        done = next(stream)
        first = time.perf_counter() - began
        while done < warm:
            done += next(stream)
        wanted = -(-patches // least) * least
        began, done = time.perf_counter(), 0
        while done < wanted:
            done += next(stream)
        speed = done / (time.perf_counter() - began)
        stream.close()
        ours = speed if ours is None else ours
        for peer, limits in (("TorchIO", (8, 3)), ("MONAI", (8, 2))):
            if name.startswith(peer):
                gate(f"loader, workers {workers}, girih / {peer}", ours / speed, at_least=limits[workers > 0])
        print(f"| {name} | {first:.1f} | {speed:.1f} | {ours / speed:.1f}x |", flush=True)
    print()


def girih_loader(folder: Path, size: int, workers: int, *, raw: bool = False) -> Callable[[], Iterator[int]]:
    from girih_data3d.torch import make_loader

    sampler = d3.PatchSampler((size,) * 3, object_fraction=1 / 3)
    dataset = d3.PatchDataset(d3.Store.open(folder / "prepared"), sampler, n_per_epoch=10**6, raw=raw)

    def stream() -> Iterator[int]:
        for batch in make_loader(dataset, batch_size=1, start=0, stop=10**6, workers=workers):
            yield len(batch["image"])

    return stream


def torchio_loader(folder: Path, size: int, count: int, workers: int) -> Callable[[], Iterator[int]]:
    import torchio

    def stream() -> Iterator[int]:
        subjects = [
            torchio.Subject(
                image=torchio.ScalarImage(folder / f"{i}.nii.gz"),
                label=torchio.LabelMap(folder / f"{i}_objects.nii.gz"),
            )
            for i in range(count)
        ]
        data = torchio.SubjectsDataset(subjects, transform=torchio.ZNormalization())
        sampler = torchio.data.LabelSampler(size, label_name="label", label_probabilities={0: 2, 1: 1})
        while True:
            queue = torchio.Queue(data, 32, 8, sampler, num_workers=workers)
            for batch in torchio.SubjectsLoader(queue, batch_size=1):
                yield len(batch["image"]["data"])

    return stream


def monai_loader(folder: Path, size: int, count: int, workers: int) -> Callable[[], Iterator[int]]:
    from monai import data, transforms

    keys = ["image", "label"]
    steps = transforms.Compose(
        [
            transforms.LoadImaged(keys, ensure_channel_first=True),
            transforms.NormalizeIntensityd("image"),
            transforms.RandCropByPosNegLabeld(keys, "label", (size,) * 3, pos=1, neg=2, num_samples=4),
        ]
    )
    items = [{"image": str(folder / f"{i}.nii.gz"), "label": str(folder / f"{i}_objects.nii.gz")} for i in range(count)]

    def stream() -> Iterator[int]:
        context = "forkserver" if workers else None
        persistent = data.PersistentDataset(items, steps, cache_dir=folder / "monai")
        loader = data.DataLoader(
            persistent, batch_size=1, shuffle=True, num_workers=workers, multiprocessing_context=context
        )
        while True:
            for batch in loader:
                yield len(batch["image"])

    return stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the patches")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2], help="of the loaders; none: no loaders")
    parser.add_argument("--only", choices=("reading", "loaders"), help="one part")
    options = parser.parse_args()
    patches, rounds = (4, 3) if options.quick else (40, 5)
    names = ("girih-data3d", "zarr", "numcodecs", "numpy", "blosc2", "torch", "torchio", "monai")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in names if has(name)) + "\n")
    folder = Path(tempfile.mkdtemp(prefix="patch_loading_"))
    try:
        if options.only != "loaders":
            reading(folder, (300, 512, 512), patches, rounds)
        if options.only != "reading":
            for workers in options.workers:
                loaders(folder / f"loaders{workers}", patches * 2, workers)
    finally:
        shutil.rmtree(folder)
    print("| gate | bound | found |\n|---|---|---|")
    print("\n".join(f"| {line}{'' if kept else ' **missed**'} |" for line, kept in GATES))
    if not all(kept for _, kept in GATES):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
