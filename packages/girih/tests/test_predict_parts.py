"""What `girih predict` is made of: shares of the cases, checks of ensembles, air, candidates on disk, case by case."""

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih import ensembles
from girih.air import NotAir, not_air
from girih.candidates import CandidateFolder
from girih.casewise import LISTED, case_by_case, refuse_failures
from girih.ensembles import Ensemble, load_ensemble, preparation_differences
from girih.inference import NO_HOST_MEMORY, Inference, tiles_at_once
from girih.merging_file import check_place, read_merging, write_merging
from girih.scans import Scan
from girih.shares import Share, read_share, refuse_shares, with_others
from girih_data3d import PrepareSpec
from girih_detectors.inference import Candidates, Merging, SweepResult, tile_grid

SPEC = PrepareSpec()
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none"}
LOOKED = {"models": ["step_000000001 0"], "mirror": True, "overlap": 0.5}


class Seen(torch.nn.Module):
    """A detector that finds nothing, and remembers how many tiles it was shown."""

    classes = ("ball",)

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.tiles, self.error = 0, error
        self.pyramid = torch.nn.Identity()

    def detect(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        if self.error is not None:
            raise self.error
        self.tiles += len(images)
        empty = {"boxes": torch.zeros(0, 6), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
        return [empty] * len(images)

    forward = tensors = postprocess = detect


def ensemble(**changed: Any) -> Ensemble:
    return Ensemble(
        **{
            "detectors": (Seen(),),
            "classes": ("ball",),
            "in_channels": 1,
            "modality": "CT",
            "spec": SPEC,
            "patch_zyx": (32, 32, 32),
            "models": ("step_000000001 0",),
            "trained_on": frozenset({"a"}),
            **changed,
        }
    )


@given(st.integers(0, 30), st.integers(1, 7), st.integers(1, 4))
def test_shares_and_ranks_part_all_cases(cases: int, parts: int, world: int) -> None:
    found = [
        case
        for part in range(parts)
        for rank in range(world)
        for case in read_share(f"{part}/{parts}", TORCHRUN | {"RANK": str(rank), "WORLD_SIZE": str(world)}).of(
            range(cases)
        )
    ]
    assert sorted(found) == list(range(cases))


def test_a_process_alone_takes_everything() -> None:
    assert read_share(None, {}) == Share(0, 1, 0)
    assert read_share("1/4", {}).of("abcdefg") == ["b", "f"]
    left = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert read_share(None, TORCHRUN | left) == Share(5, 8, 1)
    assert read_share(None, left) == Share(0, 1, 0)  # what a job scheduler has left there is no torchrun


@pytest.mark.parametrize("shard", ["", "1", "4/4", "-1/4", "0/0", "1/2/3", "a/b", "1 / 2", "٣/4", "0/99999999999"])
def test_a_shard_that_there_is_not(shard: str) -> None:
    with pytest.raises(ValueError, match=r"--shard is .*, wanted i/n with i from 0 to n - 1"):
        read_share(shard, {})
    with pytest.raises(ValueError, match="RANK/WORLD_SIZE is '2/2'"):
        read_share(None, TORCHRUN | {"RANK": "2", "WORLD_SIZE": "2"})


def test_nobody_waits_outside_torchrun() -> None:
    with pytest.raises(ValueError, match="why"), with_others({"RANK": "0", "WORLD_SIZE": "2"}):
        raise ValueError("why")


def test_a_command_without_shares() -> None:
    refuse_shares({})
    refuse_shares({"RANK": "0", "WORLD_SIZE": "1"})
    for environment in ({"RANK": "1"}, {"RANK": "0", "WORLD_SIZE": "2"}):
        with pytest.raises(ValueError, match="one process alone can do this, but the environment says"):
            refuse_shares(environment)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"classes": ("cube",)}, "classes is ('cube',), that of a is ('ball',)"),
        ({"in_channels": 2}, "in_channels is 2, that of a is 1"),
        ({"patch_zyx": (32, 32, 64)}, "patch_zyx is (32, 32, 64), that of a is (32, 32, 32)"),
        ({"modality": "MR"}, "modality is 'MR', that of a is 'CT'"),
        ({"spec": PrepareSpec(target_zyx_mm=None)}, "target_zyx_mm is None, that of a is (1.0, 1.0, 1.0)"),
        ({"spec": PrepareSpec(normalisation="none")}, "normalisation is 'none', that of a is 'zscore'"),
        ({"spec": PrepareSpec(clip=(0, 1))}, "clip is (0.0, 1.0), that of a is None"),
        ({"spec": PrepareSpec(crop=None)}, "crop is None, that of a is 'nonzero'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_models_that_do_not_go_together(changed: dict, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {Path("a"): ensemble(), Path("b"): ensemble(), Path("c"): ensemble(**changed)}
    monkeypatch.setattr(ensembles, "_alone", models.__getitem__)
    with pytest.raises(ValueError) as error:
        load_ensemble(list(models))
    assert str(error.value) == f"c: {words}: the models of an ensemble have one"


def test_models_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ("step_000000007 1",)
    models = {
        Path("a"): ensemble(modality=None),
        Path("b"): ensemble(
            models=other,
            trained_on=frozenset({"b"}),
            spec=PrepareSpec(dtype="float32", quant_step=1, compression="zstd"),
        ),
    }
    monkeypatch.setattr(ensembles, "_alone", models.__getitem__)
    both = load_ensemble(list(models))
    assert both.detectors == (models[Path("a")].detectors[0], models[Path("b")].detectors[0])
    assert both.models == (*models[Path("a")].models, *other)
    assert both.trained_on == {"a", "b"}
    assert both.modality == "CT"
    with pytest.raises(ValueError, match="no model is given"):
        load_ensemble([])


def test_every_setting_of_a_preparation_is_compared_or_known_to_be_of_storage() -> None:
    other = PrepareSpec((2, 2, 2), "linear", False, "ct", (0, 1), (0,), (1,), "float32", 1, "zstd", None)
    names = [field.name for field in dataclasses.fields(PrepareSpec)]
    assert all(getattr(other, name) != getattr(SPEC, name) for name in names)
    found = [name for name, *_ in preparation_differences(other, SPEC)]
    assert found == [name for name in names if name not in ("dtype", "quant_step", "compression")]


def test_tiles_at_once() -> None:
    patches = [(192, 192, 192), (128, 128, 128), (96, 128, 128), (64, 64, 128), (64, 64, 64), (8, 8, 8)]
    assert [tiles_at_once(patch) for patch in patches] == [1, 1, 1, 4, 8, 8]


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'cuda', but torch finds no NVIDIA GPU"):
        Inference(device="cuda").resolve()
    assert Inference().resolve().device.type == "cpu"
    with pytest.raises(ValueError, match=r"overlap is 1.0, wanted 0 to below 1"):
        Inference(overlap=1.0)
    with pytest.raises(ValueError, match="tile_batch is 0, wanted 1 or more"):
        Inference(tile_batch=0)


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "no"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_processes_share_the_gpus_of_a_machine(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    looking = [Inference().resolve(local) for local in range(3)]
    assert [one.device for one in looking] == [torch.device("cuda", n) for n in (0, 1, 0)]
    assert looking[0].precision == precision
    assert Inference(precision="fp16").resolve().precision == "fp16"
    assert Inference(device="cpu").resolve().precision == "no"


def test_tiles_of_plain_air_are_not_looked_at() -> None:
    image = np.full((2, 40, 48, 64), -1.5, np.float32)
    image[1] = 0.25
    air = NotAir(image)
    assert air.shape == (40, 48, 64)
    assert not air[0:40, 0:48, 0:64].any()
    image[1, 30:34, 20, 60] = 3  # in one channel only
    np.testing.assert_array_equal(air[20:40, 0:48, 32:64], (image[1, 20:40, :, 32:] == 3))
    for marked in (image, np.full((1, 40, 48, 64), 7, np.float32)):
        model = Seen()
        found = Inference(device="cpu", fast=True).resolve().collect(
            ensemble(detectors=(model,), patch_zyx=(16, 16, 16)), marked, pool=10
        )  # fmt: skip
        assert [len(one["scores"]) for one in found] == [0]
        inside = [
            start
            for start in tile_grid((40, 48, 64), (16, 16, 16), 0.25)
            if (marked[1:, *(slice(s, s + 16) for s in start)] == 3).any()
        ]
        assert model.tiles == len(inside)
    image[0, 31, 31, 31] += 1  # noise in the corner: the mask would not be worth a look at every voxel
    assert not_air(image) is None
    assert not_air(image[:, :, 31:, 31:]) is None
    assert not_air(image[:, 32:]) is not None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate 80 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 GiB"),
    ],
)
def test_too_little_memory(error: Exception) -> None:
    model = Seen(error)
    looking, image = Inference(device="cpu", fast=True).resolve(), np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    with pytest.raises(ValueError, match=r"cpu has too little memory; a smaller --tile-batch may help .*tried to"):
        looking.collect(ensemble(detectors=(model,), patch_zyx=(2, 2, 2)), image, pool=10)
    with pytest.raises(RuntimeError, match="a mistake"):
        looking.collect(ensemble(detectors=(Seen(RuntimeError("a mistake")),), patch_zyx=(2, 2, 2)), image, pool=10)


def test_too_little_memory_in_truth() -> None:
    with pytest.raises(RuntimeError, match=NO_HOST_MEMORY):
        torch.empty(10**15)


def test_merging_files(tmp_path: Path) -> None:
    path, merging = tmp_path / "merging.json", Merging(tile_iou=0.3, tile_nms="plain")
    check_place(path)
    rows = ({"parameter": "tile_iou", "value": 0.3, "score": math.nan},)
    write_merging(path, SweepResult(merging, 0.5, 0.25, rows), {**LOOKED, "precision": "no"}, metric="AP")
    content = json.loads(path.read_text())
    assert list(content) == [
        "schema",
        "merging",
        "metric",
        "score",
        "start_score",
        "rows",
        "models",
        "mirror",
        "overlap",
    ]
    assert content["rows"][0]["score"] is None
    check_place(path)
    assert read_merging(path, LOOKED) == (merging, None)
    doubt = f"{path} is for models ['step_000000001 0'], now ['step_000000002 1']; mirror True, now False"
    assert read_merging(path, LOOKED | {"models": ["step_000000002 1"], "mirror": False}) == (merging, doubt)
    for change, words in (
        ({"tile_iou": 2}, "tile_iou is 2, wanted"),
        ({"tile_iou": True}, "tile_iou is True, wanted"),
        ({"pool": True}, "pool is True, wanted"),
        ({"pool": 10**400}, r"pool is 1000+\.\.\.0+, wanted an integer"),
        ({"min_side": 10**400}, r"min_side is 1000+\.\.\.0+, wanted a number"),
        ({"min_side": math.inf}, "min_side is inf, wanted"),
        ({"min_side": False}, "min_side is False, wanted"),
        ({"score_threshold": math.nan}, "score_threshold is nan, wanted"),
        ({"score_threshold": False}, "score_threshold is False, wanted"),
        ({"tile_nms": [[[]]]}, r"tile_nms is \[\[\[\]\]\], wanted"),
        ({"colour": 2}, "'colour'.*, wanted an object with pool, tile_nms"),
    ):
        path.write_text(json.dumps(content | {"merging": content["merging"] | change}))
        with pytest.raises(ValueError, match=f"merging.json: merging.*{words}"):
            read_merging(path, LOOKED)
    path.write_text(json.dumps(content | {"merging": 1}))
    with pytest.raises(ValueError, match="merging is a int, wanted an object"):
        read_merging(path, LOOKED)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"merging.json: not JSON: maximum recursion"):
        read_merging(path, LOOKED)
    path.write_text(json.dumps({"schema": "girih-detections/1"}))
    for call in (check_place, partial(read_merging, looked=LOOKED)):
        with pytest.raises(ValueError, match="schema is 'girih-detections/1', wanted 'girih-merging/1'"):
            call(path)
    with pytest.raises(ValueError, match=r"has no other.json"):
        read_merging(tmp_path / "other.json", LOOKED)
    with pytest.raises(ValueError, match=r"--out is .*merging.txt, wanted the name of a file that ends in .json"):
        check_place(tmp_path / "merging.txt")


def candidates(n: int, seed: int) -> Candidates:
    random = torch.Generator().manual_seed(seed)
    return Candidates(
        boxes=torch.randn(n, 6, generator=random),
        scores=torch.rand(n, generator=random),
        labels=torch.arange(n),
        weights=torch.rand(n, generator=random),
    )


@pytest.mark.parametrize("lengths", [[3, 0, 2], [0], [0, 0], [5]])
def test_candidates_come_back_to_the_bit(lengths: list[int], tmp_path: Path) -> None:
    folder = CandidateFolder(tmp_path / "candidates", {"a": (4, 5, 6)})
    folder.begin({"pool": 10})
    written = [candidates(n, k) for k, n in enumerate(lengths)]
    assert not folder.holds("a", 7)
    folder.write("a", 7, written)
    assert folder.holds("a", 7)
    assert not folder.holds("a", 8)  # found in other data
    assert (list(folder), len(folder), folder["a"]["shape_zyx"]) == (["a"], 1, (4, 5, 6))
    for one, other in zip(folder["a"]["candidates"], written, strict=True):
        assert all(one[key].equal(other[key]) and one[key].dtype == other[key].dtype for key in other)


def test_candidates_of_others_and_damaged_ones(tmp_path: Path) -> None:
    folder = CandidateFolder(tmp_path / "candidates", {"a": (4, 5, 6)})
    folder.begin({"pool": 10})
    folder.begin({"pool": 10})
    with pytest.raises(ValueError, match=r"candidates.json: pool is 10, now 11: pass another --out"):
        folder.begin({"pool": 11})
    folder.write("a", 7, [candidates(3, 0)])
    content = (folder.path / "a.npz").read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"not a zip file", content.replace(b"boxes.npy", b"foxes.npy")):
        (folder.path / "a.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a.npz: cannot be read, remove it"):
            folder["a"]
    np.savez(folder.path / "a.npz", checksum=np.array([{}], object))  # a pickle, which is not opened
    with pytest.raises(ValueError, match=r"a.npz: cannot be read"):
        folder.holds("a", 7)


def test_case_by_case(capsys: pytest.CaptureFixture[str]) -> None:
    def read() -> Any:
        raise FileNotFoundError(2, "No such file or directory", "scan.nii")

    def work(scan: Scan, on_tiles: Any) -> str | None:
        on_tiles(1, 2)
        return None if scan.case_id == "done" else f"{scan.open()[0]} boxes"

    scans = [
        Scan("gone", read, str),
        Scan("[red]good[/red]", lambda: (3, {}), str),
        Scan("done", read, str),
        Scan("unfit", read, str, "has 2 channels, the model takes 1"),
        Scan("large", lambda: (_ for _ in ()).throw(MemoryError("64 GiB")), str),
    ]
    failed = case_by_case(scans, work, quiet=True)
    assert failed == {
        "gone": "FileNotFoundError: [Errno 2] No such file or directory: 'scan.nii'",
        "unfit": "has 2 channels, the model takes 1",
        "large": "too little memory: 64 GiB",
    }
    said = capsys.readouterr().err
    assert "[red]good[/red]: 3 boxes (0.0 s)" in said
    assert "unfit: failed: has 2 channels" in said
    assert "done" not in said
    with pytest.raises(
        ValueError, match=r"3 of 5 cases failed, the others are done:\n  gone: .*\n  unfit: .*\n  large"
    ):
        refuse_failures(failed, len(scans))
    refuse_failures({}, 5)
    for n, words in ((1, "^the only case failed:\n  case0: why$"), (2, "^all 2 cases failed:\n  case0")):
        with pytest.raises(ValueError, match=words):
            refuse_failures({f"case{k}": "why" for k in range(n)}, n)
    with pytest.raises(ValueError, match=r"^no table$"):
        refuse_failures({}, 5, "no table")
    with pytest.raises(ValueError, match=r"a: why\nno table$"):
        refuse_failures({"a": "why"}, 5, "no table")
    with pytest.raises(ValueError, match=r"case19: why\n  and 3 more$"):
        refuse_failures({f"case{n}": "why" for n in range(LISTED + 3)}, 99)
