"""What voxels propose, which of them may, and how the best become queries."""

from fractions import Fraction

import pytest
import torch

from girih_detectors import LayerOutput, SetLoss, TwoStage
from girih_detectors.positional_encoding import box_encoding
from girih_detectors.proposals import count_usable, proposal_boxes, usable_proposals

SHAPES = ((1, 2, 3), (1, 1, 2))


def test_proposals_of_two_levels_by_hand() -> None:
    wanted = [
        [1 / 2, 1 / 4, 1 / 6], [1 / 2, 1 / 4, 3 / 6], [1 / 2, 1 / 4, 5 / 6],
        [1 / 2, 3 / 4, 1 / 6], [1 / 2, 3 / 4, 3 / 6], [1 / 2, 3 / 4, 5 / 6],
        [1 / 2, 1 / 2, 1 / 4], [1 / 2, 1 / 2, 3 / 4],
    ]  # fmt: skip
    sides = [0.05] * 6 + [0.1] * 2
    rows = [place + [side] * 3 for place, side in zip(wanted, sides, strict=True)]
    torch.testing.assert_close(proposal_boxes(SHAPES), torch.tensor(rows))


def test_sides_double_and_stop_before_the_patch() -> None:
    sides = proposal_boxes(((1, 1, 1),) * 7)[:, 3:]
    torch.testing.assert_close(sides[:, 0], torch.tensor([0.05, 0.1, 0.2, 0.4, 0.8, 0.9, 0.9]))
    assert torch.equal(sides, sides[:, :1].expand(-1, 3))
    assert usable_proposals(((1, 1, 1),) * 7).all()


@pytest.mark.parametrize("cells", [1, 2, 3, 48, 49, 50, 51, 64, 149, 150, 151, 192, 250, 400])
def test_centres_within_a_hundredth_of_a_face_are_not_usable(cells) -> None:
    """In exact fractions: 0.5 / 50 is 0.01 and not more."""
    near = Fraction(1, 100)
    wanted = [near < Fraction(2 * i + 1, 2 * cells) < 1 - near for i in range(cells)]
    for axis in range(3):
        shape = tuple(cells if other == axis else 1 for other in range(3))
        assert usable_proposals((shape,)).tolist() == wanted
        assert count_usable((shape,)) == sum(wanted)


def test_usable_voxels_of_levels_with_three_different_sides() -> None:
    shapes = ((2, 50, 3), (1, 25, 2))
    usable = usable_proposals(shapes)
    fine = usable[:300].view(2, 50, 3)
    assert not fine[:, [0, 49]].any()
    assert fine[:, 1:49].all()
    assert usable[300:].all()
    assert count_usable(shapes) == usable.sum() == 2 * 48 * 3 + 50
    boxes = proposal_boxes(shapes)
    inside = ((boxes > 0.01 + 1e-7) & (boxes < 0.99 - 1e-7)).all(1)  # Deformable DETR's rule
    assert torch.equal(inside, usable)


def choose(logits, queries, usable=None, shapes=((2, 2, 2),)) -> list[list[int]]:
    """Which voxels become queries, by boxes that say their number."""
    boxes = torch.arange(logits.shape[1]).float()[None, :, None].expand(len(logits), -1, 6)
    chosen = TwoStage(16, logits.shape[2], queries, 0.05).choose(LayerOutput(logits, boxes, usable), shapes)
    assert chosen.shape[2] == 6
    return chosen[..., 0].long().tolist()


def test_the_best_class_counts_and_ties_go_to_the_lower_index() -> None:
    logits = torch.tensor([[0.0, 1], [3, 0], [0, 3], [3, 3], [2, 2], [-1, 9], [1, 0], [3, -5]])[None]
    assert choose(logits, 5) == [[5, 1, 2, 3, 7]]
    assert choose(torch.cat([torch.zeros_like(logits), logits]), 3) == [[0, 1, 2], [5, 1, 2]]


def test_ties_of_a_whole_patch_are_in_order() -> None:  # an unstable sort mixes long rows
    shapes = ((16, 16, 16),)
    assert choose(torch.zeros(1, 4096, 1), 300, shapes=shapes) == [list(range(300))]


def test_what_is_not_usable_never_becomes_a_query() -> None:
    shapes = ((50, 1, 2),)
    logits = torch.zeros(1, 100, 1)
    logits[0, [0, 99]] = 9.0
    assert choose(logits, 200, usable_proposals(shapes)[None], shapes) == [list(range(2, 98))]
    logits[0, 40] = torch.nan
    assert choose(logits, 2, usable_proposals(shapes)[None], shapes) == [[40, 2]]  # so that it is seen and refused


def test_what_is_not_usable_learns_nothing() -> None:
    shapes = ((50, 1, 2),)
    stage = TwoStage(16, 2, 4, 0.05)
    torch.nn.init.normal_(stage.heads.box_head[-1].weight)
    memory = torch.randn(1, 100, 16, requires_grad=True)
    proposed = stage.propose(memory, shapes)
    target = {"boxes": torch.tensor([[0.0, 0, 0, 1, 1, 1]]), "labels": torch.tensor([1])}  # around the first voxel
    SetLoss()([LayerOutput(torch.zeros(1, 0, 2), torch.zeros(1, 0, 6))], proposed, [target], (50, 2, 2))[
        "loss"
    ].backward()
    learning = memory.grad[0].abs().sum(1) > 0
    assert torch.equal(learning, usable_proposals(shapes))


def test_queries_are_made_of_boxes_alone() -> None:
    stage = TwoStage(16, 2, 4, 0.05)
    boxes = torch.rand(2, 3, 6)
    position, content = stage.queries_of(boxes)
    hidden = box_encoding(boxes, 8) @ stage.embed.weight.T + stage.embed.bias
    mean, variance = hidden.mean(-1, keepdim=True), hidden.var(-1, correction=0, keepdim=True)
    torch.testing.assert_close(torch.cat([position, content], -1), (hidden - mean) / (variance + 1e-5).sqrt())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, _ = stage.queries_of(boxes)
    assert low.dtype == torch.float32  # what is added up in the decoder stays exact
    assert (low - position).norm() < 0.03 * position.norm()


def test_queries_send_no_gradient_to_memory() -> None:
    stage = TwoStage(16, 2, 4, 0.05)
    proposed = stage.propose(torch.randn(1, 8, 16, requires_grad=True), SHAPES)
    assert not stage.choose(proposed, SHAPES).requires_grad
    assert proposed.logits.requires_grad
    assert proposed.boxes.requires_grad


def test_at_the_start_voxels_propose_their_own_box() -> None:
    proposed = TwoStage(16, 2, 4, 0.05).propose(torch.randn(2, 8, 16), SHAPES)
    torch.testing.assert_close(proposed.boxes, proposal_boxes(SHAPES).expand(2, -1, -1))
    assert proposed.usable.shape == (2, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((16, 1, 0, 0.05), "queries is 0"),
        ((18, 1, 4, 0.05), "dim is 18, wanted a multiple of 4"),
        ((16, 1, 4, 0.0), "prior is 0.0, wanted a probability"),
        ((16, 1, 4, 1.0), "prior is 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        TwoStage(*settings)
