"""The assembled detector, without training it."""

import inspect
import warnings

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from girih_detectors import ORIGINAL_2D, DeformableDETR, Detector, SetLoss, edges_to_centre, parameter_groups
from girih_detectors.testing import TinyPyramid, toy_batch

COARSE = ((2, 2, 2), (4, 4, 4))


def build(pyramid=None, **changes) -> DeformableDETR:
    settings = {"classes": ("a", "b"), "queries": 12, "dim": 48, "heads": 4, "points": 2, "feedforward": 32}
    layers = {"encoder_layers": 1, "decoder_layers": 2}
    return DeformableDETR(pyramid or TinyPyramid(strides=COARSE), **(settings | layers | changes))


def shake(detector) -> DeformableDETR:
    """Let the heads say something."""
    for name, parameter in detector.named_parameters():
        if "heads" in name and "box_head.4" in name:
            nn.init.normal_(parameter, std=0.2)
    return detector


class Ragged(nn.Module):
    """Five maps of other widths, strides that differ per axis: what an encoder is."""

    channels = (4, 8, 12, 16, 20)
    strides = ((1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8), (4, 16, 8))

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(
            nn.Conv3d(1, c, s, stride=s) for c, s in zip(self.channels, self.strides, strict=True)
        )

    def forward(self, x):
        return [conv(x) for conv in self.maps]


def test_it_is_a_detector() -> None:
    assert isinstance(build(), Detector)


def test_any_pyramid_will_do() -> None:
    detector = build(Ragged())
    assert detector.levels == (1, 2, 3, 4)
    images, targets = torch.randn(2, 1, 8, 16, 24), [{"boxes": torch.rand(0, 6), "labels": torch.zeros(0).long()}] * 2
    logits, boxes = detector.tensors(images)
    assert (logits.shape, boxes.shape) == ((2, 12, 2), (2, 12, 6))
    assert detector(images, targets)["loss"].isfinite()
    assert [tuple(part[0].weight.shape[:2]) for part in detector.mapper.maps] == [(48, c) for c in (8, 12, 16, 20)]
    with pytest.raises(ValueError, match="20 voxels along y, wanted a multiple of 16"):
        detector(torch.randn(1, 1, 8, 20, 24), targets[:1])


def test_the_parts_add_up_and_are_those_of_the_loss() -> None:
    detector = shake(build())
    images, targets = toy_batch((2, 1))
    losses = detector(images, targets)
    names = ("classification", "l1", "giou")
    assert list(losses) == ["loss", *names, *(f"encoder_{name}" for name in names)]
    torch.testing.assert_close(losses["loss"].detach(), torch.stack(list(losses.values())[1:]).sum())
    decoded, proposed = detector._read(images)
    proposed = proposed._replace(background=detector._background(targets, proposed))
    torch.testing.assert_close(losses, SetLoss()(decoded, proposed, targets, (24, 24, 24)))


def test_tensors_are_the_last_layers() -> None:
    detector = shake(build())
    images, _ = toy_batch((2,))
    decoded, proposed = detector._read(images)
    assert len(decoded) == 2
    assert proposed.logits.shape == (1, 12**3 + 6**3, 2)
    logits, boxes = detector.tensors(images)
    assert torch.equal(logits, decoded[1].logits)
    assert torch.equal(boxes, decoded[1].boxes)
    assert not torch.equal(boxes, decoded[0].boxes)


def test_objects_have_no_order() -> None:
    detector = shake(build())
    images, targets = toy_batch((4,))
    order = torch.tensor([2, 0, 3, 1])
    shuffled = [{**targets[0], **{key: targets[0][key][order] for key in ("boxes", "labels")}}]
    torch.testing.assert_close(detector(images, shuffled), detector(images, targets))


def test_a_batch_is_its_images_one_by_one() -> None:
    detector = shake(build())
    images, targets = toy_batch((3, 1, 2))
    together = detector.tensors(images)
    for row in range(3):
        for a, b in zip(detector.tensors(images[row : row + 1]), together, strict=True):
            torch.testing.assert_close(a[0], b[row], rtol=1e-4, atol=1e-5)
    parts = [detector(images[row : row + 1], targets[row : row + 1])["loss"] * n for row, n in enumerate((3, 1, 2))]
    torch.testing.assert_close(detector(images, targets)["loss"], torch.stack(parts).sum() / 6, rtol=1e-4, atol=0)


def test_a_batch_without_objects_gives_every_parameter_a_gradient() -> None:
    detector = shake(build(dropout=0.1, checkpoint_encoder=True))
    detector(*toy_batch((0, 0)))["loss"].backward()
    missing = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert missing == []
    assert all(not part.grad.any() for heads in detector.decoder.heads for part in heads.box_head.parameters())
    assert all(heads.class_head.bias.grad.all() for heads in detector.decoder.heads)


def test_checkpointing_keeps_less_and_changes_no_number() -> None:
    plain, thrifty = build(), build(checkpoint_encoder=True)
    thrifty.load_state_dict(plain.state_dict())
    kept, gradients = [], []
    for detector in (plain, thrifty):
        tensors = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=tensors: to.append(x) or x, lambda x: x):
            loss = detector(*toy_batch((2,)))["loss"]
        loss.backward()
        kept.append(sum(x.nbytes for x in tensors))
        gradients.append([parameter.grad for parameter in detector.parameters()])
    assert kept[1] < 0.8 * kept[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_planted_query_is_found_at_its_box() -> None:
    detector = build()
    wanted = torch.tensor([[3.0, 5, 7, 9, 10, 15]])
    logits, boxes = torch.full((1, 12, 2), -9.0), torch.rand(1, 12, 6) * 0.1 + 0.4
    logits[0, 7, 1] = 3.0
    boxes[0, 7] = edges_to_centre(wanted, (12, 16, 20))
    (found,) = detector.postprocess((logits, boxes), (12, 16, 20))
    torch.testing.assert_close(found["boxes"][:1], wanted)
    assert found["labels"][0] == 1
    assert len(found["scores"]) == 24
    assert len(build(max_detections=5).postprocess((logits, boxes), (12, 16, 20))[0]["scores"]) == 5


def test_fewer_voxels_than_queries() -> None:
    """2^3 + 1 voxels make 9 queries: each is one. Otherwise there would be two at one place."""
    detector = build(queries=50)
    images = torch.randn(2, 1, 4, 4, 4)
    assert detector.tensors(images)[0].shape == (2, 9, 2)
    assert len(detector.detect(images)) == 2
    detector(images, [{"boxes": torch.tensor([[0.0, 0, 0, 2, 2, 2]]), "labels": torch.tensor([1])}] * 2)[
        "loss"
    ].backward()


def test_more_objects_than_queries_is_one_warning() -> None:
    detector = build(queries=2)
    images, targets = toy_batch((1, 4))
    with pytest.warns(UserWarning, match=r"target 1 has 4 objects, the detector 2 queries.*`queries`"):
        first = detector(images, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = detector(images, targets)
    assert first["loss"].isfinite()
    assert torch.equal(first["loss"], again["loss"])


@pytest.mark.parametrize("objects", [(1, 1), (1, 0), (0, 0)])
def test_nan_is_refused(objects) -> None:
    detector = build()
    images, targets = toy_batch(objects)
    images[1, 0, 3, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        detector.detect(images)
    with pytest.raises(ValueError, match=r"target 1.*not finite"):
        detector(images, targets)


def test_queries_without_room_in_the_patch_are_not_the_plans_fault() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 2, 2, 2]]).expand(10, 6)
    with pytest.warns(UserWarning, match=r"10 objects, the detector 9 queries.*should have at least 10 usable voxels"):
        build(queries=50)(torch.randn(1, 1, 4, 4, 4), [{"boxes": boxes, "labels": torch.zeros(10).long()}])


def test_heads_start_to_look_where_they_are_told() -> None:
    def starts(detector):
        return [value for name, value in detector.state_dict().items() if name.endswith("sampling_offsets.bias")]

    paper, parity = starts(build(heads=8)), starts(build(heads=8, directions="nndetection"))
    assert len(paper) == 3
    assert not any(torch.equal(a, b) for a, b in zip(paper, parity, strict=True))


def test_an_ignored_object_teaches_nothing_at_its_place() -> None:
    """Marked as not valid, a cube of 3 voxels, smaller than a cell, may be anything there: queries and tokens."""
    detector = shake(build(Ragged(), queries=4))
    images, (target,) = torch.randn(1, 1, 16, 32, 32), toy_batch((1,), shape=(16, 32, 32))[1]
    valid = torch.ones(16, 32, 32, dtype=torch.bool)
    valid[9:12, 21:24, 5:8] = False
    target = {"boxes": target["boxes"], "labels": target["labels"], "valid": valid}
    decoded, proposed = detector._read(images)
    background = detector._background([target], proposed)
    taught = background[0].split([16 * 16 * 16, 8 * 8 * 8, 4 * 4 * 4, 4 * 2 * 4])
    shapes = ((16, 16, 16), (8, 8, 8), (4, 4, 4), (4, 2, 4))
    for each, shape, stride in zip(taught, shapes, detector.pyramid.strides[1:], strict=True):
        wanted = torch.ones(shape, dtype=torch.bool)
        for cell in wanted.nonzero().tolist():  # by distance, one cell after the other
            middle = [(i + 0.5) * s - 0.5 for i, s in zip(cell, stride, strict=True)]
            near = ((valid.logical_not().nonzero() - torch.tensor(middle)).abs() < torch.tensor(stride)).all(1)
            wanted[tuple(cell)] = not near.any()
        assert torch.equal(each.view(shape), wanted)
        assert not wanted.all()
    place = torch.tensor([10.5 / 16, 22.5 / 32, 6.5 / 32, 0.2, 0.1, 0.1])
    gradients = []
    for score in (-3.0, 3.0):
        boxes = torch.cat([place.expand(1, 1, 6), decoded[0].boxes.detach()], 1).requires_grad_()
        logits = torch.cat([torch.full((1, 1, 2), score), decoded[0].logits.detach()], 1).requires_grad_()
        tokens = proposed.logits.detach().clone()
        tokens[~background] = score
        loss = SetLoss(cost_classification=0.0)(  # so that what is said there is matched as before
            [decoded[0]._replace(logits=logits, boxes=boxes)],
            proposed._replace(logits=tokens.requires_grad_(), background=background),
            [target],
            (16, 32, 32),
        )["loss"]
        gradients.append(torch.autograd.grad(loss, [logits, tokens]))
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)
    assert not gradients[0][0][0, 0].any()
    assert not gradients[0][1][~background].any()


class Waits(TorchFunctionMode):
    """Counts what makes the host wait for a GPU, and what copies numbers of the host to it."""

    COPIES = frozenset({"tensor", "new_tensor", "as_tensor", "numpy", "cpu", "item", "tolist"})
    LOOKS = frozenset({"__bool__", "__int__", "__float__", "__index__", "__contains__", "equal", "allclose"})
    SIZES = frozenset({"nonzero", "argwhere", "unique", "bincount", "masked_select", "repeat_interleave"})

    def __init__(self) -> None:
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        index = args[1] if func.__name__ in ("__getitem__", "__setitem__") else ()
        parts = index if isinstance(index, tuple) else (index,)
        by_mask = any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)
        if func.__name__ in self.COPIES | self.LOOKS | self.SIZES or by_mask:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_two_waits_in_a_step_for_all_layers_and_images(monkeypatch) -> None:
    """One for the targets' numbers, which the GPU has long, and one for the costs."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    detector = build(decoder_layers=3)
    images, targets = toy_batch((3, 0, 2))
    with Waits() as waits:
        detector(images, targets)["loss"].backward()
    assert waits.found == ["numpy", "numpy"]


def test_bfloat16_weights() -> None:
    detector = build().bfloat16().eval()
    (found,) = detector.detect(toy_batch((2,))[0].bfloat16())
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert detector.tensors(toy_batch((2,))[0].bfloat16())[1].dtype == torch.float32


def test_the_state_has_the_names_it_promises() -> None:
    found = {name for name in build(TinyPyramid(strides=COARSE)).state_dict() if not name.startswith("pyramid.")}
    linear = ("weight", "bias")
    attention = [
        f"{part}.{kind}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for kind in linear
    ]
    feed_forward = [f"feed_forward.{part}.{kind}" for part in ("expand", "contract", "norm") for kind in linear]
    heads = [f"{part}.{kind}" for part in ("class_head", "box_head.0", "box_head.2", "box_head.4") for kind in linear]
    own = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    wanted = {f"mapper.maps.{level}.{part}.{kind}" for level in (0, 1) for part in (0, 1) for kind in linear}
    wanted |= {"positions.level_embedding"}
    wanted |= {f"encoder.layers.0.attention.{name}" for name in attention}
    wanted |= {f"encoder.layers.0.{name}" for name in [*feed_forward, "norm.weight", "norm.bias"]}
    wanted |= {f"proposals.{part}.{kind}" for part in ("project", "norm", "embed", "embed_norm") for kind in linear}
    wanted |= {f"proposals.heads.{name}" for name in heads}
    for layer in (0, 1):
        wanted |= {f"decoder.layers.{layer}.cross_attention.{name}" for name in attention}
        wanted |= {f"decoder.layers.{layer}.self_attention.{name}" for name in own}
        wanted |= {f"decoder.layers.{layer}.{name}" for name in feed_forward}
        wanted |= {f"decoder.layers.{layer}.{part}.{kind}" for part in ("self_norm", "cross_norm") for kind in linear}
        wanted |= {f"decoder.heads.{layer}.{name}" for name in heads}
    assert found == wanted


class Wide(nn.Module):
    """As wide as the last four of the residual encoder's six stages."""

    channels = (32, 64, 128, 256, 320, 320)
    strides = tuple((2**i,) * 3 for i in range(6))


def test_the_papers_configuration_has_this_many_parameters() -> None:
    def linear(inputs, outputs):
        return inputs * outputs + outputs

    d, samples = 128, 8 * 4 * 4
    norm = 2 * d
    attention = linear(d, 3 * samples) + linear(d, samples) + 2 * linear(d, d)
    feed = linear(d, 1024) + linear(1024, d) + norm
    heads = linear(d, 1) + 2 * linear(d, d) + linear(d, 6)
    mapper = sum(linear(c, d) + norm for c in (128, 256, 320, 320))
    first_stage = linear(d, d) + norm + linear(3 * d, 2 * d) + 2 * norm + heads
    decoder = attention + 4 * linear(d, d) + 2 * norm + feed + heads
    wanted = mapper + 4 * d + 3 * (attention + norm + feed) + first_stage + 6 * decoder
    detector = DeformableDETR(Wide(), classes=("nodule",), queries=12)
    assert sum(parameter.numel() for parameter in detector.parameters()) == wanted == 4_150_193
    assert detector.levels == (2, 3, 4, 5)


def test_norms_do_not_decay() -> None:
    decayed, kept = parameter_groups(build(), 1e-4)
    assert len(decayed["params"]) + len(kept["params"]) == len(list(build().parameters()))
    norms = 2 * (2 + 2)  # pyramid and mapper
    norms += 2 * 2 + 2 * 2 + 2 * 2 * 3  # an encoder layer, the proposals, two decoder layers
    assert len(kept["params"]) == norms - 2 * 2 + 2 * 2


def test_the_defaults_are_the_papers_and_the_originals_are_at_hand() -> None:
    signature = inspect.signature(inspect.unwrap(DeformableDETR.__init__)).parameters
    paper = {
        "dim": 128, "heads": 8, "points": 4, "encoder_layers": 3, "decoder_layers": 6, "feedforward": 1024,
        "dropout": 0.0, "loss": SetLoss(), "prior": 0.05, "position_offset": 0.0,
    }  # fmt: skip
    assert {name: signature[name].default for name in paper} == paper
    original = {
        "dim": 256, "heads": 8, "points": 4, "encoder_layers": 6, "decoder_layers": 6, "feedforward": 1024,
        "dropout": 0.1, "loss": SetLoss(gamma=2.0, alpha=0.25, classification=2.0), "prior": 0.01,
        "position_offset": -0.5, "queries": 300,
    }  # fmt: skip
    assert original == ORIGINAL_2D
    detector = DeformableDETR(TinyPyramid(strides=COARSE), classes=("a",), **ORIGINAL_2D).eval()
    logits, boxes = detector.tensors(torch.randn(1, 1, 16, 8, 8))
    assert (logits.shape, boxes.shape) == ((1, 144, 1), (1, 144, 6))
    assert detector.positions.offset == -0.5
    assert logits.sigmoid().mean().item() < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": (0, 2)}, r"levels are \(0, 2\), the pyramid has maps 0..1"),
        ({"levels": ()}, r"levels are \(\)"),
        ({"levels": (1, 0)}, r"levels are \(1, 0\), wanted ascending"),
        ({"classes": ()}, r"classes are \[\]"),
        ({"classes": ("a", "a")}, "each once"),
        ({"queries": 0}, "queries is 0"),
        ({"dim": 40}, "dim is 40, wanted a multiple of the 16 groups"),
        ({"dim": 32, "heads": 3}, "dim is 32, wanted a multiple of the 3 heads"),
        ({"dim": 32, "heads": 3, "encoder_layers": 0}, "dim is 32, wanted a multiple of the 3 heads"),
        ({"points": 0}, "points is 0"),
        ({"encoder_layers": -1}, "encoder_layers is -1"),
        ({"decoder_layers": 0}, "decoder_layers is 0"),
        ({"feedforward": 0}, "feedforward is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"prior": 0.0}, "prior is 0.0"),
        ({"max_detections": 0}, "max_detections is 0"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
        ({"directions": "cube"}, "directions is 'cube'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message, monkeypatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # whose messages come first
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("shapes", "image_zyx", "message"),
    [
        (((2, 12, 3), (2, 12, 6)), (8, 8, 8), r"logits have shape \(2, 12, 3\), wanted \(b, queries, 2\)"),
        (((2, 12, 2), (2, 11, 6)), (8, 8, 8), r"boxes have shape \(2, 11, 6\), wanted \(2, 12, 6\)"),
        (((2, 12, 2), (2, 12, 5)), (8, 8, 8), r"boxes have shape \(2, 12, 5\)"),
        (((2, 12, 2), (2, 12, 6)), (8, 0, 8), r"image_zyx is \(8, 0, 8\)"),
    ],
)
def test_other_tensors_are_refused(shapes, image_zyx, message) -> None:
    with pytest.raises(ValueError, match=message):
        build().postprocess(tuple(torch.zeros(shape) for shape in shapes), image_zyx)
