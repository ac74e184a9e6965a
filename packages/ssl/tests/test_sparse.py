"""Sparse execution of an encoder: which cells are visible, what may leak, and who is fit for it."""

import copy
import gc
import math
import weakref

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from girih_ssl.interfaces import Parts
from girih_ssl.masking import to_voxels
from girih_ssl.s3d import S3DConfig
from girih_ssl.sparse import VisibleCells, any_visible, bind, is_all_visible
from girih_ssl.sparse_check import check_sparse
from girih_ssl.testing import TinyEncoder, TinyNeck, make_batch

STRIDES = ((1, 1, 1), (2, 2, 2), (4, 4, 4))
CHANNELS = (4, 8, 8)
PATCH = (16, 16, 24)


class Norm(nn.InstanceNorm3d):
    """An instance norm with a forward of its own, as encoders have for speed."""

    def forward(self, x):
        y = F.batch_norm(
            x.contiguous().view(1, -1, *x.shape[2:]),
            None,
            None,
            self.weight.repeat(len(x)),
            self.bias.repeat(len(x)),
            training=True,
            eps=self.eps,
        )
        return torch.ops.aten._unsafe_view(y, x.shape)


class Unit(nn.Module):
    def __init__(self, before, after, stride=1, act=None):
        super().__init__()
        self.conv = nn.Conv3d(before, after, 3, stride, padding=1)
        self.norm = Norm(after, affine=True)
        self.act = act or nn.Identity()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


class Block(nn.Module):
    """act(unit(unit(x)) + skip(x)), the sum in place, the skip by pooling and a projection."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.first = Unit(before, after, stride, act=nn.LeakyReLU(0.01, inplace=True))
        self.second = Unit(after, after)
        skip = [nn.AvgPool3d(stride)] if stride > 1 else []
        if before != after:
            skip += [nn.Conv3d(before, after, 1, bias=False), Norm(after, affine=True)]
        self.skip = nn.Sequential(*skip)
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x):
        skip = self.skip(x)
        return self.act(self.second(self.first(x)).add_(skip))


class Stages(nn.ModuleList):
    checkpointing = False

    def forward(self, h):
        maps = []
        for stage in self:
            h = checkpoint(stage, h, use_reentrant=False) if self.checkpointing else stage(h)
            maps.append(h)
        return maps


class Residual(nn.Module):
    """A residual encoder; `change` replaces one of its modules."""

    def __init__(self, in_channels=1, **change):
        super().__init__()
        self.in_channels, self.channels, self.strides = in_channels, CHANNELS, STRIDES
        self.stem = Unit(in_channels, 4, act=nn.LeakyReLU(0.01, inplace=True))
        self.stages = Stages([Block(4, 4, 1), Block(4, 8, 2), Block(8, 8, 2)])
        for name, module in change.items():
            self.set_submodule(name.replace("__", "."), module)

    def forward(self, x):
        if x.shape[1] != self.in_channels:  # a branch on shapes, which a symbolic trace cannot follow
            raise ValueError("channels")
        return self.stages(self.stem(x))


def hide(share=0.5, patch=PATCH, block=(4, 4, 4), seed=0, samples=2, strides=STRIDES):
    grid = [side // length for side, length in zip(patch, block, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    visible = VisibleCells(torch.rand(samples, *grid, generator=generator) >= share, block, strides)
    image = torch.randn(samples, 1, *patch, generator=generator)
    return visible, image * to_voxels(visible.visible, block)


def seeded(cls=Residual, seed=0, **change):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(**change)


def objective(seed=0, block=(4, 4, 4), encoder=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = Parts(
            encoder=encoder or Residual(),
            make_neck=TinyNeck,
            make_stem=lambda channels: Unit(channels, 4),
            in_channels=1,
            patch_zyx=PATCH,
        )
        return S3DConfig(0.5, block).build(parts)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# which cells are visible


def test_the_cells_of_a_finer_grid_repeat_their_block():  # blocks of (2, 4, 2) voxels, the first is visible
    blocks = torch.tensor([[[[True, False]]]])
    assert any_visible(blocks, (2, 4, 2), (1, 2, 1))[0].tolist() == [[[1, 1, 0, 0]] * 2] * 2
    assert any_visible(blocks, (2, 4, 2), (2, 4, 2))[0].tolist() == [[[1, 0]]]


def test_along_a_coarser_axis_a_cell_is_visible_if_any_block_in_it_is():  # two blocks along x in a cell
    blocks = torch.tensor([[[[True, False, False, False]]]])
    assert any_visible(blocks, (4, 4, 2), (2, 4, 4))[0].tolist() == [[[1, 0]]] * 2


def test_a_grid_that_is_coarser_along_all_axes_is_visible():
    assert is_all_visible((32, 32, 32), (16, 16, 16))
    assert not is_all_visible((16, 16, 16), (16, 16, 16))
    assert not is_all_visible((16, 32, 32), (16, 16, 16))
    visible = VisibleCells(torch.zeros(1, 2, 2, 2, dtype=torch.bool), (2, 2, 2), [(4, 4, 4), (1, 1, 1)])
    assert visible.on((1, 1, 1)) is None
    assert not visible.on((4, 4, 4)).shown.any()


@given(
    block=st.tuples(*[st.integers(1, 6)] * 3),
    stride=st.tuples(*[st.integers(1, 6)] * 3),
    seed=st.integers(0, 1000),
)
def test_a_cell_is_visible_if_any_of_its_voxels_is(block, stride, seed):
    grid = [math.lcm(b, s) // b for b, s in zip(block, stride, strict=True)]
    blocks = torch.rand(2, *grid, generator=torch.Generator().manual_seed(seed)) < 0.3
    voxels = to_voxels(blocks, block).float()
    wanted = F.max_pool3d(voxels, stride, stride)[:, 0].bool()
    assert torch.equal(any_visible(blocks, block, stride), wanted)


# what the encoder sees


@pytest.mark.parametrize("cls", [Residual, TinyEncoder])
@pytest.mark.parametrize("block", [(4, 4, 4), (8, 8, 8), (2, 2, 2), (2, 8, 4)])
def test_hidden_voxels_change_no_bit_of_any_map_and_hidden_cells_are_zero(cls, block):
    encoder = seeded(cls)
    visible, image = hide(block=block)
    voxels = to_voxels(visible.visible, block)
    other = torch.where(voxels, image, 1e3)
    maps = bind(encoder, visible)(image)
    for found, wanted in zip(bind(encoder, visible)(other * voxels), maps, strict=True):
        assert torch.equal(found, wanted)
    for level, found in enumerate(maps):
        cells = visible.on(tuple(found.shape[2:]))
        assert (cells is None) == (block == (2, 2, 2) and level == 2)
        if cells is not None:
            assert not found.masked_select(cells.hidden.bool()).any()
            assert found.masked_select(cells.shown.bool()).all()


@pytest.mark.parametrize("cls", [Residual, TinyEncoder])
@pytest.mark.parametrize("block", [(4, 4, 4), (2, 2, 2), (2, 8, 4)])
def test_with_nothing_hidden_it_is_the_dense_encoder_bit_for_bit(cls, block):
    encoder = seeded(cls)
    visible, image = hide(share=0.0, block=block)
    for found, wanted in zip(bind(encoder, visible)(image), encoder(image), strict=True):
        assert torch.equal(found, wanted)


def test_a_sample_does_not_depend_on_what_is_visible_in_the_others():
    encoder = seeded()
    visible, image = hide(samples=3)
    visible.visible[1] = False
    visible = VisibleCells(visible.visible, visible.block_zyx, STRIDES)
    assert len(set(visible.on(PATCH).count.flatten().tolist())) == 3
    together = bind(encoder, visible)(image)
    assert not any(found[1].any() for found in together)  # nothing seen, nothing there
    for i in range(3):
        alone = VisibleCells(visible.visible[i : i + 1], visible.block_zyx, STRIDES)
        for found, wanted in zip(bind(encoder, alone)(image[i : i + 1]), together, strict=True):
            torch.testing.assert_close(found, wanted[i : i + 1], atol=1e-5, rtol=1e-5)


def test_it_is_the_convolution_then_the_mask_then_the_norm_of_the_visible():  # one unit, written out
    encoder = seeded()
    visible, image = hide(samples=1)
    (unit,) = (encoder.stem,)
    shown = visible.on(PATCH).shown[0, 0].bool()
    conv = copy.deepcopy(unit.conv).double()
    values = conv(image.double())[0][:, shown]
    wanted = F.instance_norm(values[None], None, None, unit.norm.weight.double(), unit.norm.bias.double())
    found = bind(encoder, visible).stem(image)[0][:, shown]
    torch.testing.assert_close(found.double(), F.leaky_relu(wanted[0], 0.01), atol=1e-5, rtol=1e-5)


# nothing is shared but the weights


def test_the_encoder_is_untouched_and_the_copy_has_its_weights():
    encoder = seeded()
    before = {name: (id(module), type(module), dict(vars(module))) for name, module in encoder.named_modules()}
    visible, image = hide()
    bound = bind(encoder, visible)
    bound(image)
    after = {name: (id(module), type(module), dict(vars(module))) for name, module in encoder.named_modules()}
    assert before == after
    assert all(a is b for a, b in zip(bound.parameters(), encoder.parameters(), strict=True))
    assert list(bound.state_dict()) == list(encoder.state_dict())


def test_a_module_used_twice_is_one_in_the_copy_and_hooks_are_called():
    encoder = seeded()
    encoder.again = encoder.stem.conv  # a second name for it
    seen = []
    encoder.stem.conv.register_forward_hook(lambda module, args, output: seen.append(output))
    visible, image = hide()
    bound = bind(encoder, visible)
    assert bound.again is bound.stem.conv
    assert isinstance(bound.stem.conv, nn.Conv3d)
    assert isinstance(bound.stem.norm, Norm)
    bound(image)
    assert len(seen) == 1


def test_a_submodule_compiled_on_its_own_is_masked_all_the_same():
    encoder = seeded()
    visible, image = hide()
    wanted = bind(encoder, visible)(image)
    encoder.stem.compile(backend="eager")  # would call the dense stem
    for found, other in zip(bind(encoder, visible)(image), wanted, strict=True):
        assert torch.equal(found, other)


def test_masks_are_freed_with_the_maps():
    encoder = seeded()
    visible, image = hide()
    maps = bind(encoder, visible)(image)
    mask = weakref.ref(visible.on(PATCH).shown)
    gc.disable()
    try:
        del visible, maps
        assert mask() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_models_interleaved_and_one_with_two_masks(checkpointing):
    first, second = objective(seed=1), objective(seed=2)
    batches = [make_batch(2, patch_zyx=PATCH, seed=seed) for seed in (1, 2)]
    wanted = [gradients(model, model(batch)["loss"]) for model, batch in zip((first, second), batches, strict=True)]
    for model in (first, second):
        model.encoder.stages.checkpointing = checkpointing  # recomputed in the backward pass, after another forward
    losses = [model(batch)["loss"] for model, batch in zip((first, second), batches, strict=True)]
    assert same(gradients(first, losses[0]), wanted[0])
    assert same(gradients(second, losses[1]), wanted[1])
    losses = [first(batch)["loss"] for batch in batches]
    assert same(gradients(first, losses[0]), wanted[0])


def test_a_deep_copy_is_independent():
    model = objective()
    batch = make_batch(2, patch_zyx=PATCH)
    twin = copy.deepcopy(model)
    wanted = gradients(model, model(batch)["loss"])
    assert same(gradients(twin, twin(batch)["loss"]), wanted)
    with torch.no_grad():
        twin.encoder.stem.conv.weight.zero_()
    assert same(gradients(model, model(batch)["loss"]), wanted)


@pytest.mark.filterwarnings("ignore")  # of the tracer about its own objects
def test_compiled_once_for_all_masks(monkeypatch):
    model = objective()
    model.encoder.stages.checkpointing = True
    batches = [make_batch(2, patch_zyx=PATCH, seed=seed) for seed in range(4)]
    wanted = [gradients(model, model(batch)["loss"]) for batch in batches]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch.compile cannot trace the checks
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend)
    for batch, expected in zip(batches, wanted, strict=True):
        found = gradients(model, compiled(batch)["loss"])
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)
    torch.compiler.reset()
    assert len(graphs) == 1


# who is fit for it


def test_the_strides_inside_are_found_and_nothing_is_touched():
    encoder = seeded()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    random = torch.get_rng_state()
    assert set(check_sparse(encoder, (4, 4, 4))) == set(STRIDES)
    assert torch.equal(torch.get_rng_state(), random)
    assert same(encoder.state_dict(), state)
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_an_encoder_that_is_checkpointed_already_passes():
    encoder = seeded()
    encoder.stages.checkpointing = True
    assert set(check_sparse(encoder, (4, 4, 4))) == set(STRIDES)


def test_a_stride_that_no_map_of_the_encoder_has_is_found_too():
    class Early(Residual):
        def __init__(self):
            super().__init__()
            self.strides = ((2, 2, 2), (4, 4, 4))
            self.channels = (4, 8)
            self.stages = Stages([Block(4, 4, 2), Block(4, 8, 2)])

    assert set(check_sparse(seeded(Early), (4, 4, 4))) == set(STRIDES)


class Gate(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Shift(nn.Module):
    """Adds a parameter that starts at zero."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(4, 1, 1, 1))

    def forward(self, x):
        return x + self.bias


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1, 1))

    def forward(self, x):
        return F.conv3d(x, self.weight)


class Squeeze(nn.Module):
    def forward(self, x):
        return x * x.mean((2, 3, 4), keepdim=True)


class Bypass(Unit):
    """Keeps its convolution where the tree of modules does not show it."""

    def __init__(self):
        super().__init__(4, 4)
        self.hidden = [self.conv]

    def forward(self, x):
        return self.hidden[0](x)


class Twice(nn.InstanceNorm3d):
    def forward(self, x):
        return 2 * super().forward(x)


class Gated(nn.InstanceNorm3d):
    """Adds what it is given, by a factor that starts at zero."""

    def __init__(self, channels):
        super().__init__(channels)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return super().forward(x) + self.gate * x


class Centred(nn.Conv3d):
    def forward(self, x):
        y = super().forward(x)
        return y - y.mean((2, 3, 4), keepdim=True)


class Shifted(nn.Conv3d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(F.relu(x + 1), weight, bias)


class Softened(nn.AvgPool3d):
    def forward(self, x):
        return F.softplus(super().forward(x))


def patched():
    """A convolution whose instance has another forward."""
    conv = nn.Conv3d(4, 4, 1)
    conv.forward = conv.forward
    return conv


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.BatchNorm3d(4), r"encoder.stem.act: BatchNorm3d calls aten.*batch_norm.*not elementwise"),
        (nn.GroupNorm(2, 4), r"encoder.stem.act: GroupNorm calls aten.native_group_norm"),
        (nn.Sequential(nn.Softplus()), r"encoder.stem.act.0: Softplus calls aten.softplus.* does not keep zeros zero"),
        (Gate(), r"encoder.stem.act: Gate calls aten.sigmoid.* does not keep zeros zero"),
        (Shift(), r"encoder.stem.act: Shift calls aten.add.Tensor, which does not keep zeros zero"),
        (Functional(), r"encoder.stem.act: Functional calls aten.convolution"),
        (Squeeze(), r"encoder.stem.act: Squeeze calls aten.mean"),
        (Bypass(), r"encoder.stem.act: Bypass calls aten.convolution"),
        (nn.Dropout(0.5), r"encoder.stem.act: Dropout calls aten.*, which draws random numbers"),
        (nn.Dropout(0.5).eval(), r"encoder.stem.act: Dropout calls aten.*, which draws random numbers"),
        (nn.Dropout3d(0.5), r"encoder.stem.act: Dropout3d calls aten"),
        (nn.RReLU(), r"encoder.stem.act: RReLU calls aten.rrelu.*, which draws random numbers"),
        (Centred(4, 4, 1), r"encoder.stem.act: found Centred with a forward of its own, wanted that of nn.Conv3d"),
        (Shifted(4, 4, 1), r"encoder.stem.act: found Shifted with a forward of its own, wanted that of nn.Conv3d"),
        (Softened(1), r"encoder.stem.act: found Softened with a forward of its own, wanted that of nn.AvgPool3d"),
        (patched(), r"encoder.stem.act: found Conv3d with a forward of its own"),
        (nn.MaxPool3d(1, return_indices=True), r"encoder.stem.act: found MaxPool3d that returns indices"),
        (nn.Upsample(scale_factor=1), r"encoder.stem.act: Upsample calls aten.upsample"),
        (nn.AdaptiveAvgPool3d(8), r"encoder.stem.act: AdaptiveAvgPool3d calls aten"),
        (nn.Conv3d(4, 4, 3), r"encoder: found a map of \(6, 2, 2\) cells, wanted divisors of the patch \(8, 4, 4\)"),
        (
            nn.InstanceNorm3d(4, track_running_stats=True),
            r"encoder.stem.act: found InstanceNorm3d with running stat",
        ),
        (Twice(4), r"encoder: with nothing hidden, map 0 is off by"),
        (Gated(4), r"encoder: with nothing hidden, map 0 is off by"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_an_encoder_that_does_something_else_is_refused(module, message):
    encoder = seeded(stem__act=module)
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        objective(encoder=encoder)
    assert torch.equal(torch.get_rng_state(), random)
    assert same(encoder.state_dict(), state)


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(inplace=True),
        nn.GELU(),
        nn.SiLU(),
        nn.PReLU(4),
        nn.Hardswish(),
        nn.ELU(),
        nn.Tanh(),
        nn.Identity(),
        nn.MaxPool3d(3, 1, 1),
        nn.AvgPool3d(3, 1, 1),
        nn.Sequential(nn.Conv3d(4, 4, 1), nn.InstanceNorm3d(4)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_keeps_zeros_is_accepted(module):
    encoder = seeded(stem__act=module)
    model = objective(encoder=encoder)
    visible, image = hide()
    for found in bind(encoder, visible)(image):
        assert not (found * visible.on(tuple(found.shape[2:])).hidden).any()
    model(make_batch(2, patch_zyx=PATCH))["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_an_encoder_in_half_precision_or_in_evaluation_is_checked_as_any_other():
    encoder = seeded().bfloat16().eval()
    assert set(check_sparse(encoder, (4, 4, 4))) == set(STRIDES)
    assert not encoder.training
    assert not encoder.stem.conv.training
    assert encoder.stem.conv.weight.dtype == torch.bfloat16


def test_an_encoder_without_values_is_refused():
    with pytest.raises(ValueError, match=r"encoder.stem.conv: found Conv3d on the meta device, wanted one with values"):
        objective(encoder=seeded().to("meta"))


def test_a_branch_that_starts_at_zero_hides_nothing():
    encoder = seeded()
    encoder.stages[0].second.norm = Gated(4)
    nn.init.zeros_(encoder.stages[0].second.conv.weight)
    nn.init.zeros_(encoder.stages[0].second.conv.bias)
    with pytest.raises(ValueError, match="encoder: with nothing hidden, map 0 is off by"):
        check_sparse(encoder, (4, 4, 4))


@pytest.mark.parametrize(
    "declared",
    [
        {"channels": (4, 8, 16)},
        {"channels": (4, 8), "strides": STRIDES[:2]},
        {"strides": ((1, 1, 1), (2, 2, 2), (4, 4, 8))},
        {"strides": ((1, 1, 1), (4, 4, 4), (4, 4, 4))},
        {"strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2))},
    ],
)
def test_maps_other_than_declared_are_refused(declared):
    encoder = seeded()
    vars(encoder).update(declared)
    with pytest.raises(ValueError, match=r"encoder: found maps of shapes \[\(1, 4, 8.*\], wanted .* by its channels"):
        check_sparse(encoder, (4, 4, 4))


def test_an_encoder_that_changed_its_strides_after_the_check_is_refused():
    model = objective()
    model.encoder.stages[2].first.conv.stride = (1, 1, 2)
    with pytest.raises(ValueError, match=r"found a map of \(8, 8, 6\) cells for a patch of \(16, 16, 24\) voxels"):
        model(make_batch(2, patch_zyx=PATCH))
