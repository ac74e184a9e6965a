"""Batches: joined as agreed, resumable at any step, the same from workers."""

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


def test_workers_give_the_same_batches(prepared: d3.Store) -> None:
    samples = dataset(prepared)
    samples[0]  # the parent has read before the workers start
    here = list(make_loader(samples, batch_size=2, start=0, stop=4))
    for context in ("forkserver", "fork"):
        loader = make_loader(samples, batch_size=2, start=0, stop=4, workers=2, context=context)
        for a, b in zip(here, loader, strict=True):
            assert_equal(a, b)


def test_damage_is_reported_from_a_worker(prepared: d3.Store, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(prepared.root, tmp_path / "copy")
    samples = dataset(d3.Store.open(tmp_path / "copy"))
    for shard in (tmp_path / "copy").glob("cases/*/*/0/c/0/0/0/0"):
        content = bytearray(shard.read_bytes())
        content[:-600] = bytes(len(content) - 600)  # the index stays
        shard.write_bytes(content)
    with pytest.raises(d3.CorruptCaseError, match=r"case 'case[01]': .*0/c/0/0/0/0"):
        list(make_loader(samples, batch_size=2, start=0, stop=2, workers=1))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"start": 3}, {"rank": 1}, {"workers": -1}, {"world": 0}])
def test_refusals(prepared: d3.Store, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="wanted batch_size >= 1"):
        make_loader(dataset(prepared), **{"batch_size": 1, "start": 0, "stop": 2, **wrong})
