from typing import Any

import torch

from girih.batches import images_and_targets


def batch(**more: Any) -> dict[str, Any]:
    return {
        "image": torch.zeros(2, 1, 4, 4, 4),
        "boxes": [torch.ones(1, 6), torch.zeros(0, 6)],
        "labels": [torch.tensor([0]), torch.tensor([], dtype=torch.int64)],
        "index": torch.tensor([5, 6]),
        **more,
    }


def test_targets_have_what_a_detector_knows_of() -> None:
    valid, seed = torch.ones(2, 4, 4, 4, dtype=torch.bool), torch.tensor([3, 2**62])
    whole = batch(instances=torch.arange(2).view(2, 1, 1, 1), valid=valid, seed=seed, case_id=["a", "b"])
    images, targets = images_and_targets(whole)
    assert images is whole["image"]
    assert [set(target) for target in targets] == [{"boxes", "labels", "instances", "valid", "seed", "case_id"}] * 2
    assert [target["case_id"] for target in targets] == ["a", "b"]
    assert [target["seed"].tolist() for target in targets] == [3, 2**62]
    assert [target["instances"].item() for target in targets] == [0, 1]
    assert targets[1]["boxes"] is whole["boxes"][1]


def test_what_the_batch_lacks_the_targets_lack() -> None:
    assert [set(target) for target in images_and_targets(batch())[1]] == [{"boxes", "labels"}] * 2
