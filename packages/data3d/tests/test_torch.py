"""Batches: joined as agreed, resumable at any step, the same from workers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import girih_data3d as d3
from girih_data3d.torch import collate, dequantise, make_loader

torch.set_num_threads(1)


def dataset(store: d3.Store, **kwargs: Any) -> d3.PatchDataset:
    sampler = d3.PatchSampler((16, 20, 24), geometry=None if kwargs.get("raw") else d3.Geometry(p_rotation=0.5))
    return d3.PatchDataset(store, sampler, n_per_epoch=10, case_ids=("case0", "case1"), **kwargs)


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(b[key], value, rtol=0, atol=0)
        elif isinstance(value[0], str):
            assert b[key] == value
        else:
            for x, y in zip(value, b[key], strict=True):
                torch.testing.assert_close(y, x, rtol=0, atol=0)


def test_batch_has_the_agreed_form(prepared: d3.Store) -> None:
    samples = dataset(prepared)
    batch = collate([samples[1], samples[3], samples[5]])
    assert batch["image"].shape == (3, 1, 16, 20, 24)
    assert batch["image"].dtype == torch.float32
    for key in ("instances", "semantic", "valid"):
        assert batch[key].shape == (3, 16, 20, 24)
    assert (batch["start"].shape, batch["affine"].shape) == ((3, 3), (3, 4, 4))
    assert batch["index"].tolist() == [1, 3, 5]
    assert batch["seed"].dtype == torch.int64
    assert [type(b) for b in batch["boxes"]] == [torch.Tensor] * 3
    assert isinstance(batch["case_id"], list)
    assert batch["dataset"] == ["toy"] * 3
    assert "scale" not in batch
    with pytest.raises(ValueError, match="no samples"):
        collate([])


def test_optional_keys_only_if_every_sample_has_them(prepared: d3.Store) -> None:
    mixed = d3.PatchDataset(prepared, d3.PatchSampler((8, 8, 8), object_fraction=0), n_per_epoch=3)
    batch = collate(list(mixed))
    assert sorted(batch["case_id"]) == ["case0", "case1", "free"]
    assert "instances" not in batch
    assert "semantic" not in batch
    assert len(batch["boxes"]) == 3


def test_channels_that_differ_stay_apart() -> None:
    one, two = ({"image": np.zeros((c, 2, 2, 2), np.int16), "scale": np.ones(c, np.float32) * c} for c in (1, 2))
    batch = collate([{**s, "offset": s["scale"]} for s in (one, two)])
    assert [t.shape[0] for t in batch["image"]] == [1, 2]
    out = dequantise(batch, "cpu")
    assert [t.unique().tolist() for t in out["image"]] == [[1], [2]]


def test_dequantised_raw_equals_float(prepared: d3.Store) -> None:
    raw, plain = (
        dataset(prepared, raw=True),
        d3.PatchDataset(prepared, d3.PatchSampler((16, 20, 24)), n_per_epoch=10, case_ids=("case0", "case1")),
    )
    a, b = dequantise(collate([raw[0], raw[1]]), "cpu"), collate([plain[0], plain[1]])
    assert_equal(a, dequantise(b, "cpu"))
    assert_equal(a, b)


def test_any_step_can_be_the_first(prepared: d3.Store) -> None:
    samples = dataset(prepared)
    whole = list(make_loader(samples, batch_size=3, start=0, stop=5))
    rest = list(make_loader(samples, batch_size=3, start=3, stop=5))
    assert [b["index"].tolist() for b in whole] == [[3 * t, 3 * t + 1, 3 * t + 2] for t in range(5)]
    for a, b in zip(whole[3:], rest, strict=True):
        assert_equal(a, b)


def test_ranks_share_the_items_out(prepared: d3.Store) -> None:
    samples = dataset(prepared)
    ranks = [list(make_loader(samples, batch_size=2, start=1, stop=3, rank=r, world=3)) for r in range(3)]
    found = [[b["index"].tolist() for b in rank] for rank in ranks]
    assert found == [[[6, 7], [12, 13]], [[8, 9], [14, 15]], [[10, 11], [16, 17]]]


@pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])
def test_workers_give_the_same_batches(prepared: d3.Store, context: str) -> None:
    samples = dataset(prepared)
    samples[0]  # the parent has read before the workers start
    here = list(make_loader(samples, batch_size=2, start=0, stop=4))
    loader = make_loader(samples, batch_size=2, start=0, stop=4, workers=2, context=context)
    for a, b in zip(here, loader, strict=True):
        assert_equal(a, b)


def test_an_epoch_is_a_permutation_however_many_ranks_share_it(prepared: d3.Store) -> None:
    sampler = d3.PatchSampler((8, 8, 8), object_fraction=0)
    samples = d3.PatchDataset(prepared, sampler, n_per_epoch=12)
    alone = [(g, samples[g]["case_id"]) for g in range(12)]
    assert all({case_id for _, case_id in alone[at : at + 3]} == set(prepared) for at in range(0, 12, 3))
    for world in (1, 2, 3, 4):
        loaders = [
            make_loader(samples, batch_size=1, start=0, stop=12 // world, rank=r, world=world) for r in range(world)
        ]
        found = [(int(b["index"][0]), b["case_id"][0]) for loader in loaders for b in loader]
        assert sorted(found) == alone


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_reported_from_a_worker(prepared: d3.Store, tmp_path: Path, workers: int) -> None:
    shutil.copytree(prepared.root, tmp_path / "copy")
    samples = dataset(d3.Store.open(tmp_path / "copy"))
    for shard in (tmp_path / "copy").glob("cases/*/*/0/c/0/0/0/0"):
        content = bytearray(shard.read_bytes())
        content[:-600] = bytes(len(content) - 600)  # the index stays
        shard.write_bytes(content)
    with pytest.raises(d3.CorruptCaseError, match=r"^case 'case[01]': .*0/c/0/0/0/0") as caught:
        list(make_loader(samples, batch_size=2, start=0, stop=2, workers=workers, context="fork"))
    assert caught.value.case_id in ("case0", "case1")
    assert Path(caught.value.path).name == "0"
    assert caught.value.reason


def test_batches_of_cases_with_and_without_masks(prepared: d3.Store, tmp_path: Path) -> None:
    for name in ("a.nii", "b.nii"):
        d3.write_nifti(np.arange(24**3, dtype=np.float32).reshape(24, 24, 24), tmp_path / name, affine=np.eye(4))
    source = d3.CaseSource(
        "boxes", (tmp_path / "a.nii", tmp_path / "b.nii"), objects=(d3.ObjectLabel(0, box_zyx=(4, 4, 4, 9, 9, 9)),)
    )
    d3.prepare_many(d3.Dataset("boxes", ("c",), (source,)), tmp_path / "out", d3.PrepareSpec(), workers=0)
    both = (prepared, d3.Store.open(tmp_path / "out"))
    sampler = d3.PatchSampler((16, 16, 16), object_fraction=1, dataset_weights={"toy": 1, "boxes": 1})
    labelled = {"toy": ["case0", "case1"]}
    for raw in (False, True):
        samples = d3.PatchDataset(both, sampler, case_ids=labelled, n_per_epoch=8, raw=raw)
        batch = next(iter(make_loader(samples, batch_size=8, start=0, stop=1)))
        assert set(batch["dataset"]) == {"toy", "boxes"}
        channels = [2 if name == "boxes" else 1 for name in batch["dataset"]]
        assert [len(image) for image in batch["image"]] == channels
        assert "instances" not in batch
        assert all(len(boxes) == len(labels) > 0 for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True))
        moved = dequantise(batch, "cpu")
        plain = d3.PatchDataset(both, sampler, case_ids=labelled, n_per_epoch=8)
        for g, image in enumerate(moved["image"]):
            np.testing.assert_array_equal(image.numpy(), plain[g]["image"])
    alone = d3.PatchDataset(both[1], d3.PatchSampler((16, 16, 16)), n_per_epoch=2)
    batch = collate(list(alone))
    assert batch["image"].shape == (2, 2, 16, 16, 16)
    assert "instances" not in batch


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"start": 3}, {"rank": 1}, {"workers": -1}, {"world": 0}])
def test_refusals(prepared: d3.Store, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="wanted batch_size >= 1"):
        make_loader(dataset(prepared), **{"batch_size": 1, "start": 0, "stop": 2, **wrong})
