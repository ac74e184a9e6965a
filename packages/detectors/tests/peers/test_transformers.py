"""Deformable DETR against transformers' one in 2D, which is ours in a patch one voxel deep.

A 2D box (x, y, w, h) is here (1/2, y, x, 1, h, w): all of z. So no distance and no overlap changes, and a query that
never looks along z samples the same voxels. Their proposals and encodings have no batch of masks here: all is valid.
"""

import pytest
import torch
from torch import nn

from girih_detectors import LayerOutput, SetLoss, TransformerSettings, match_hungarian, matching_costs
from girih_detectors.detr_decoder import DetrDecoder
from girih_detectors.detr_encoder import EncoderLayer
from girih_detectors.positional_encoding import box_encoding, voxel_encoding
from girih_detectors.proposals import proposal_boxes, usable_proposals

pytest.importorskip("transformers", reason="transformers is not installed: dependency group `peers`")

from transformers import DeformableDetrConfig
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
from transformers.models.deformable_detr import modeling_deformable_detr as theirs

DIM, HEADS, POINTS, LAYERS = 32, 4, 2, 3
SHAPES = ((6, 9), (3, 4))  # height, width
DEEP = tuple((1, *shape) for shape in SHAPES)
SETTINGS = TransformerSettings(DIM, HEADS, len(SHAPES), POINTS, 48, backend="torch")
TOKENS = sum(height * width for height, width in SHAPES)
LOSS = SetLoss(gamma=2.0, alpha=0.25, classification=2.0)  # what theirs cannot change, and the original's weight


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def config() -> DeformableDetrConfig:
    return DeformableDetrConfig(
        d_model=DIM,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_n_points=POINTS,
        decoder_n_points=POINTS,
        num_feature_levels=len(SHAPES),
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        decoder_layers=LAYERS,
        dropout=0.0,
        two_stage=True,
        with_box_refine=True,
        attn_implementation="eager",
    )


def deep(boxes):
    """(x, y, w, h) as (z, y, x, dz, dy, dx) over all of z."""
    x, y, w, h = boxes.unbind(-1)
    return torch.stack([torch.full_like(x, 0.5), y, x, torch.ones_like(x), h, w], -1)


def flat(boxes):
    return boxes[..., [2, 1, 5, 4]]


def random_boxes(*rows):
    return torch.cat([0.3 + 0.4 * torch.rand(*rows, 2), 0.05 + 0.5 * torch.rand(*rows, 2)], -1)


def copy_linear(found, wanted):
    found.weight.data.copy_(wanted.weight.data)
    found.bias.data.copy_(wanted.bias.data)


def wild(module):
    """Everything random, so that nothing is equal only because it starts at zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def copy_attention(found, wanted):
    for name in ("attention_weights", "value_proj", "output_proj"):
        copy_linear(getattr(found, name), getattr(wanted, name))
    for name in ("weight", "bias"):  # rows head, level, point, then x, y; ours have z behind
        rows = getattr(wanted.sampling_offsets, name).data
        rows = rows.view(-1, 2, *rows.shape[1:])
        rows = torch.cat([rows, torch.zeros_like(rows[:, :1])], 1).flatten(0, 1)
        getattr(found.sampling_offsets, name).data.copy_(rows)


def copy_feed_forward(found, wanted):
    copy_linear(found.expand, wanted.mlp.fc1)
    copy_linear(found.contract, wanted.mlp.fc2)
    copy_linear(found.norm, wanted.final_layer_norm)


def places():
    """The geometry as theirs wants it."""
    shapes = torch.tensor(SHAPES)
    return {
        "spatial_shapes": shapes,
        "spatial_shapes_list": list(SHAPES),
        "level_start_index": torch.tensor([0, SHAPES[0][0] * SHAPES[0][1]]),
    }


def batch(queries, counts, classes=3):
    """Logits, 2D boxes, and their and our targets in a patch of 1 x 20 x 40 voxels."""
    logits, boxes = torch.randn(len(counts), queries, classes), random_boxes(len(counts), queries)
    them = [{"class_labels": torch.randint(classes, (n,)), "boxes": random_boxes(n)} for n in counts]
    us = []
    for truth in them:
        z, y, x, dz, dy, dx = deep(truth["boxes"]).unbind(-1)
        low, high = torch.stack([z - dz / 2, y - dy / 2, x - dx / 2], 1), torch.stack([dz, dy, dx], 1)
        size = torch.tensor([1.0, 20, 40])
        us.append({"boxes": torch.cat([low, low + high], 1) * size.repeat(2), "labels": truth["class_labels"]})
    return logits, boxes, them, us


@pytest.mark.parametrize(("queries", "counts"), [(10, (3, 5)), (4, (6, 2)), (300, (40, 1)), (5, (0, 2))])
def test_matcher(queries, counts) -> None:
    logits, boxes, them, _ = batch(queries, counts)
    matcher = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    wanted = matcher({"logits": logits, "pred_boxes": boxes}, them)
    objects, labels = torch.zeros(len(counts), max(counts), 6), torch.zeros(len(counts), max(counts)).long()
    for image, truth in enumerate(them):
        objects[image, : counts[image]] = deep(truth["boxes"])
        labels[image, : counts[image]] = truth["class_labels"]
    costs = matching_costs(
        logits, deep(boxes), objects, labels, classification=2.0, l1=5.0, giou_weight=2.0, gamma=2.0, alpha=0.25
    )
    pairs = match_hungarian(costs, counts, [queries])
    for image, (rows, columns) in enumerate(wanted):
        mine = pairs[1:, pairs[0] == image].T.tolist()
        assert sorted(mine) == [list(pair) for pair in zip(rows.tolist(), columns.tolist(), strict=True)]


@pytest.mark.parametrize("counts", [(3, 5), (0, 4), (12, 1)])
def test_loss_and_its_gradient(counts) -> None:
    layers = [batch(10, counts) for _ in range(3)]
    them, us = layers[0][2:]
    inputs = [x.requires_grad_() for logits, boxes, *_ in layers for x in (logits, boxes)]
    matcher = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    criterion = DeformableDetrImageLoss(matcher, num_classes=3, focal_alpha=0.25, losses=["labels", "boxes"])
    outputs = [{"logits": logits, "pred_boxes": boxes} for logits, boxes, *_ in layers]
    parts = criterion({**outputs[-1], "auxiliary_outputs": outputs[:-1]}, them)
    found = LOSS([LayerOutput(logits, deep(boxes)) for logits, boxes, *_ in layers], None, us, (1, 20, 40))
    wanted = {}
    for mine, (theirs_name, weight) in {
        "classification": ("loss_ce", 2),
        "l1": ("loss_bbox", 5),
        "giou": ("loss_giou", 2),
    }.items():
        wanted[mine] = weight * sum(value for name, value in parts.items() if name.startswith(theirs_name))
        torch.testing.assert_close(found[mine], wanted[mine].detach())
    for a, b in zip(
        torch.autograd.grad(found["loss"], inputs), torch.autograd.grad(sum(wanted.values()), inputs), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_encoding_of_voxels() -> None:
    embedding = theirs.DeformableDetrSinePositionEmbedding(10, normalize=True)
    wanted = embedding((1, 3, 5, 7), "cpu", torch.float32)[0].flatten(1).T  # y, then x
    found = voxel_encoding((1, 5, 7), 30, -0.5)[:, 10:]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)  # theirs divides by n + 1e-6


def test_encoding_of_boxes(config) -> None:
    boxes = random_boxes(2, 5)

    class Shell:
        pass

    shell = Shell()
    shell.config = config
    wanted = theirs.DeformableDetrModel.get_proposal_pos_embed(shell, boxes.logit()).unflatten(-1, (4, -1))
    found = box_encoding(deep(boxes), DIM // 2).unflatten(-1, (6, -1))
    torch.testing.assert_close(found[..., [2, 1, 5, 4], :], wanted, rtol=1e-4, atol=1e-5)


def test_proposals() -> None:
    shapes = ((60, 9), (3, 4))  # 1 / 120 of the patch is nearer than 0.01

    class Shell:
        enc_output = enc_output_norm = nn.Identity()

    memory = torch.ones(1, 60 * 9 + 12, DIM)
    mask = torch.zeros(1, memory.shape[1], dtype=torch.bool)
    content, wanted = theirs.DeformableDetrModel.gen_encoder_output_proposals(Shell(), memory, mask, shapes)
    usable = usable_proposals([(1, *shape) for shape in shapes])
    assert torch.equal(usable, content[0].any(-1))
    assert not usable.all()
    found = flat(proposal_boxes([(1, *shape) for shape in shapes]))
    torch.testing.assert_close(found[usable], wanted[0, usable].sigmoid())


def test_encoder_layer(config) -> None:
    wanted = wild(theirs.DeformableDetrEncoderLayer(config))
    found = EncoderLayer(SETTINGS)
    copy_attention(found.attention, wanted.self_attn)
    copy_linear(found.norm, wanted.self_attn_layer_norm)
    copy_feed_forward(found.feed_forward, wanted)
    memory, position = torch.randn(2, TOKENS, DIM), torch.randn(TOKENS, DIM)
    centres = proposal_boxes(DEEP)[None, :, :3].expand(2, -1, -1)
    points = centres[..., [2, 1]][:, :, None].expand(-1, -1, len(SHAPES), -1)
    want = wanted(memory, None, position[None], points, **places())
    torch.testing.assert_close(found(memory, position, centres, DEEP), want, rtol=1e-4, atol=1e-4)


def test_decoder_with_refined_boxes(config) -> None:
    wanted = theirs.DeformableDetrDecoder(config)
    wanted.bbox_embed = nn.ModuleList(theirs.DeformableDetrMLPPredictionHead(DIM, DIM, 4, 3) for _ in range(LAYERS))
    wild(wanted)
    found = DetrDecoder(LAYERS, SETTINGS, classes=1, prior=0.05)
    for layer, other in zip(found.layers, wanted.layers, strict=True):
        projections = [other.self_attn.q_proj, other.self_attn.k_proj, other.self_attn.v_proj]
        layer.self_attention.in_proj_weight.data.copy_(torch.cat([x.weight.data for x in projections]))
        layer.self_attention.in_proj_bias.data.copy_(torch.cat([x.bias.data for x in projections]))
        copy_linear(layer.self_attention.out_proj, other.self_attn.o_proj)
        copy_linear(layer.self_norm, other.self_attn_layer_norm)
        copy_attention(layer.cross_attention, other.encoder_attn)
        copy_linear(layer.cross_norm, other.encoder_attn_layer_norm)
        copy_feed_forward(layer.feed_forward, other)
    for heads, other in zip(found.heads, wanted.bbox_embed, strict=True):
        for mine, head in zip((heads.box_head[0], heads.box_head[2]), other.layers, strict=False):
            copy_linear(mine, head)
        last = heads.box_head[4]
        last.weight.data[[2, 1, 5, 4]] = other.layers[2].weight.data  # z and its side stay
        last.bias.data[[2, 1, 5, 4]] = other.layers[2].bias.data
    content, position, boxes = torch.randn(2, 7, DIM), torch.randn(2, 7, DIM), random_boxes(2, 7)
    memory = torch.randn(2, TOKENS, DIM)
    want = wanted(
        inputs_embeds=content,
        encoder_hidden_states=memory,
        object_queries_position_embeddings=position,
        reference_points=boxes,
        valid_ratios=torch.ones(2, len(SHAPES), 2),
        **places(),
    ).intermediate_reference_points
    outputs = found(content, position, deep(boxes), memory, DEEP)
    for layer, output in enumerate(outputs):
        torch.testing.assert_close(flat(output.boxes), want[:, layer], rtol=1e-4, atol=1e-4)
        assert (output.boxes[..., 0] == 0.5).all()
