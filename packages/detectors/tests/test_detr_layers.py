"""The layers of Deformable DETR: where they look, how boxes move, and what does not matter."""

import math

import pytest
import torch
import torch.nn.functional as F

from girih_detectors import DetrDecoder, DetrEncoder, QueryHeads, TransformerSettings
from girih_detectors.detr_encoder import FeedForward, to_memory, voxel_centres

SHAPES = ((3, 8, 12), (3, 4, 6))
LEVELS = 288, 72
WIDTH = {"dim": 16, "heads": 8, "levels": 2, "points": 4, "feedforward": 32}


def encoder(layers=1, checkpoint_layers=False, **settings) -> DetrEncoder:
    return DetrEncoder(layers, TransformerSettings(**(WIDTH | settings)), checkpoint_layers=checkpoint_layers)


def decoder(layers=2, **settings) -> DetrDecoder:
    return DetrDecoder(layers, TransformerSettings(**(WIDTH | settings)), classes=3, prior=0.05)


def randomise(module) -> None:
    """Let nothing be zero that starts so."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def look_straight_at(level, attention) -> None:
    """Only at the reference point, on one level, and change nothing."""
    with torch.no_grad():
        for projection in (attention.value_proj, attention.output_proj):
            projection.weight.copy_(torch.eye(attention.dim))
        attention.sampling_offsets.bias.zero_()
        weights = attention.attention_weights.bias.view(attention.heads, attention.levels, attention.points)
        weights.fill_(-torch.inf)
        weights[:, level] = 0


def seen_by(layers, attention, *inputs):
    """What this attention returns within the whole."""
    found = []
    hook = attention.register_forward_hook(lambda module, given, output: found.append(output.detach()))
    layers(*inputs)
    hook.remove()
    return found[0]


def two_maps():
    """Of three different sides each, the second half as fine along y and x."""
    return [torch.randn(2, 16, *shape) for shape in SHAPES]


@pytest.mark.parametrize("level", [0, 1])
def test_every_voxel_of_the_encoder_sees_itself(level) -> None:
    """On levels of three different sides: one axis turned or taken for another, and it sees something else."""
    memory, shapes = to_memory(two_maps())
    assert shapes == SHAPES
    layers = encoder()
    look_straight_at(level, layers.layers[0].attention)
    seen = seen_by(layers, layers.layers[0].attention, memory, torch.randn(360, 16), shapes)
    for own, (saw, there) in enumerate(zip(seen.split(LEVELS, 1), memory.split(LEVELS, 1), strict=True)):
        if own == level:
            torch.testing.assert_close(saw, there, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("voxel", [(0, 0, 0), (2, 5, 1), (1, 0, 11), (2, 7, 0)])
def test_one_bright_voxel_is_seen_from_its_place(voxel) -> None:
    maps = [torch.zeros(1, 16, *shape) for shape in SHAPES]
    maps[0][0, :, *voxel] = torch.arange(1.0, 17)
    memory, shapes = to_memory(maps)
    layers = encoder()
    look_straight_at(0, layers.layers[0].attention)
    seen = seen_by(layers, layers.layers[0].attention, memory, torch.randn(360, 16), shapes)
    torch.testing.assert_close(seen[:, : LEVELS[0]], memory[:, : LEVELS[0]], rtol=1e-4, atol=1e-5)


def test_fine_voxels_see_the_coarse_map_as_if_it_were_interpolated() -> None:
    maps = two_maps()
    memory, shapes = to_memory(maps)
    layers = encoder()
    look_straight_at(1, layers.layers[0].attention)
    seen = seen_by(layers, layers.layers[0].attention, memory, torch.randn(360, 16), shapes)
    seen = seen[:, : LEVELS[0]].transpose(1, 2).reshape(2, 16, *SHAPES[0])
    wanted = F.interpolate(maps[1], size=SHAPES[0], mode="trilinear", align_corners=False)
    inside = (..., slice(1, -1), slice(1, -1), slice(1, -1))  # at the faces one pads with zeros, the other repeats
    torch.testing.assert_close(seen[inside], wanted[inside], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [0, 1])
def test_a_query_of_the_decoder_sees_the_middle_of_its_box(level) -> None:
    memory, shapes = to_memory(two_maps())
    layers = decoder(1)
    look_straight_at(level, layers.layers[0].cross_attention)
    centres = voxel_centres(SHAPES[level])
    references = torch.cat([centres, torch.rand(len(centres), 3)], 1).expand(2, -1, -1)
    queries = torch.randn(2, len(centres), 16)
    seen = seen_by(layers, layers.layers[0].cross_attention, queries, queries, references, memory, shapes)
    torch.testing.assert_close(seen, memory.split(LEVELS, 1)[level], rtol=1e-4, atol=1e-5)


def test_an_encoder_layer_is_its_formula() -> None:
    layers = encoder()
    randomise(layers)
    (layer,) = layers.layers
    memory, shapes = to_memory(two_maps())
    position = torch.randn(360, 16)
    centres = torch.cat([voxel_centres(shape) for shape in shapes]).expand(2, -1, -1)
    x = memory + layer.attention(memory + position, centres, memory, shapes)
    x = F.layer_norm(x, (16,), layer.norm.weight, layer.norm.bias)
    feed = layer.feed_forward
    hidden = (x @ feed.expand.weight.T + feed.expand.bias).clamp(min=0)
    x = x + hidden @ feed.contract.weight.T + feed.contract.bias
    wanted = F.layer_norm(x, (16,), feed.norm.weight, feed.norm.bias)
    torch.testing.assert_close(layers(memory, position, shapes), wanted)


def test_a_decoder_layer_is_its_formula() -> None:
    """Attention among queries head by head; positions join where it is asked, not what is told."""
    layers = decoder(1)
    randomise(layers)
    (layer,) = layers.layers
    memory, shapes = to_memory(two_maps())
    content, position, references = torch.randn(2, 5, 16), torch.randn(2, 5, 16), torch.rand(2, 5, 6)
    attention = layer.self_attention
    q, k, v = (
        x @ weight.T + bias
        for x, weight, bias in zip(
            (content + position, content + position, content),
            attention.in_proj_weight.split(16),
            attention.in_proj_bias.split(16),
            strict=True,
        )
    )
    told = torch.zeros(2, 5, 16)
    for head in range(8):
        own = slice(2 * head, 2 * head + 2)
        told[..., own] = (q[..., own] @ k[..., own].mT / math.sqrt(2)).softmax(-1) @ v[..., own]
    x = layer.self_norm(content + attention.out_proj(told))
    x = layer.cross_norm(x + layer.cross_attention(x + position, references, memory, shapes))
    torch.testing.assert_close(layer(content, position, references, memory, shapes), layer.feed_forward(x))


def test_boxes_move_in_logit_space() -> None:
    """sigmoid(1 + logit(0.5)) = 0.7311, and from there by another 1 to 0.8808; by -2 to 0.1192."""
    layers = decoder(2)
    moves = torch.tensor([1.0, -2, 0, 0.5, 0, 0])
    with torch.no_grad():
        for heads in layers.heads:
            heads.box_head[-1].bias.copy_(moves)
    memory, shapes = to_memory(two_maps())
    queries, start = torch.randn(2, 3, 16), torch.full((2, 3, 6), 0.5)
    first, second = (output.boxes.detach() for output in layers(queries, queries, start, memory, shapes))
    torch.testing.assert_close(first, torch.tensor([0.731059, 0.119203, 0.5, 0.622459, 0.5, 0.5]).expand(2, 3, -1))
    torch.testing.assert_close(second, torch.tensor([0.880797, 0.017986, 0.5, 0.731059, 0.5, 0.5]).expand(2, 3, -1))


def test_each_layer_starts_from_the_boxes_of_the_one_before_and_sends_no_gradient_there() -> None:
    layers = decoder(3)
    randomise(layers)
    memory, shapes = to_memory(two_maps())
    queries = torch.randn(2, 3, 16)
    looked = []
    for layer in layers.layers:
        layer.cross_attention.register_forward_pre_hook(lambda module, given: looked.append(given[1]))
    start = torch.rand(2, 3, 6)
    outputs = layers(queries, queries, start, memory, shapes)
    for reference, wanted in zip(looked, [start, outputs[0].boxes, outputs[1].boxes], strict=True):
        assert torch.equal(reference, wanted.detach())
        assert not reference.requires_grad
    for number, heads in enumerate(layers.heads):
        (gradient,) = torch.autograd.grad(
            outputs[2].boxes.sum(), heads.box_head[-1].bias, retain_graph=True, allow_unused=True
        )
        assert (gradient is None) == (number < 2)


def test_heads_start_at_the_prior_and_at_the_reference() -> None:
    heads = QueryHeads(16, 3, 0.05)
    references = torch.rand(2, 5, 6)
    found = heads(torch.zeros(2, 5, 16), references)
    torch.testing.assert_close(found.logits.sigmoid(), torch.full((2, 5, 3), 0.05))
    torch.testing.assert_close(heads(torch.randn(2, 5, 16), references).boxes, references)
    edge = heads(torch.randn(1, 1, 16), torch.tensor([[[0.0, 1, 1e-9, 0.5, 0, 1]]])).boxes
    torch.testing.assert_close(edge, torch.tensor([[[1e-5, 1 - 1e-5, 1e-5, 0.5, 1e-5, 1 - 1e-5]]]))


def test_heads_stay_exact_under_autocast() -> None:
    heads = QueryHeads(16, 3, 0.05)
    randomise(heads)
    queries, references = torch.randn(2, 5, 16), torch.rand(2, 5, 6)
    exact = heads(queries, references)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = heads(queries, references)
    assert torch.equal(low.logits, exact.logits)
    assert torch.equal(low.boxes, exact.boxes)
    half = heads.bfloat16()(queries.bfloat16(), references)
    assert half.logits.dtype == half.boxes.dtype == torch.float32


def test_queries_have_no_order() -> None:
    layers = decoder(3)
    randomise(layers)
    memory, shapes = to_memory(two_maps())
    content, position, references = torch.randn(2, 7, 16), torch.randn(2, 7, 16), torch.rand(2, 7, 6)
    order = torch.tensor([3, 0, 6, 5, 1, 2, 4])
    straight = layers(content, position, references, memory, shapes)
    shuffled = layers(content[:, order], position[:, order], references[:, order], memory, shapes)
    for a, b in zip(shuffled, straight, strict=True):
        torch.testing.assert_close(a.logits, b.logits[:, order], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a.boxes, b.boxes[:, order], rtol=1e-4, atol=1e-5)


def kept_bytes_and_gradients(layers, memory, position):
    """Bytes that the forward pass keeps for the gradient besides parameters, the output, and the gradients."""
    own = {parameter.data_ptr() for parameter in layers.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def keep_input(layer, given):
        keep(given[0])  # to run the layer again, which no hook for saved tensors sees

    hooks = [layer.register_forward_pre_hook(keep_input) for layer in layers.layers]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layers(memory, position, SHAPES)
    for hook in hooks:
        hook.remove()
    return sum(kept.values()), out, torch.autograd.grad(out.square().sum(), [memory, position, *layers.parameters()])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_checkpointed_layers_keep_less_and_learn_the_same(dropout) -> None:
    plain = encoder(3, dropout=dropout, feedforward=128)
    randomise(plain)
    thrifty = encoder(3, dropout=dropout, feedforward=128, checkpoint_layers=True)
    thrifty.load_state_dict(plain.state_dict())
    found = []
    for layers in (plain, thrifty):
        torch.manual_seed(1)
        memory = torch.randn(2, sum(LEVELS), 16, requires_grad=True)
        position = torch.randn(sum(LEVELS), 16, requires_grad=True)
        found.append(kept_bytes_and_gradients(layers, memory, position))
    (much, wanted, gradients), (little, output, again) = found
    assert little < much / 8
    assert torch.equal(output, wanted)
    assert all(torch.equal(a, b) for a, b in zip(again, gradients, strict=True))


def test_an_encoder_without_layers_changes_nothing() -> None:
    memory, shapes = to_memory(two_maps())
    assert torch.equal(encoder(0)(memory, torch.randn(360, 16), shapes), memory)


def test_dropout_is_for_training() -> None:
    part = FeedForward(16, 32, 0.5)
    x = torch.randn(2, 5, 16)
    assert not torch.equal(part(x), part(x))
    part.eval()
    assert torch.equal(part(x), part(x))


def test_a_decoder_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="decoder_layers is 0"):
        decoder(0)
