"""Whether an encoder can be executed sparsely: a dry run that looks at every operation."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from girih_ssl.interfaces import Encoder, Triple
from girih_ssl.masked_norm import Cells
from girih_ssl.masking import to_voxels
from girih_ssl.sparse import MINDFUL, VisibleCells, copy_tree

# Elementwise, but without PyTorch's tag that says so.
ALSO_ELEMENTWISE = {
    torch.ops.aten.alias,
    torch.ops.aten.detach,
    torch.ops.aten._to_copy,
    torch.ops.aten._prelu_kernel,
    torch.ops.aten.hardswish,
    torch.ops.aten.hardswish_,
}
TOLERANCE = 1e-2  # of the largest value: a GPU may choose another algorithm for the same convolution


@torch.no_grad()
def check_sparse(encoder: Encoder, block_zyx: Triple) -> tuple[Triple, ...]:
    """Return the strides of all the maps inside an encoder, voxels per cell, if it can be executed sparsely.

    That is so if it calls convolutions, pooling and instance normalisations as modules, and in between does nothing
    but elementwise operations that keep zeros zero; and if with nothing hidden it is the dense encoder. Found by
    running copies of it on the smallest possible patch with every other block hidden: float32, in training, and with
    arbitrary parameters and buffers, as one that is zero now may become another. Neither the encoder nor a random
    state is touched.

    Raises:
        ValueError: it cannot; the message names the module and the operation. Or its maps have not the channels and
            strides that it declares.
    """
    module: Any = encoder
    for name, part in module.named_modules(prefix="encoder"):
        _check_module(name, part)
    sides = [math.lcm(side, step) for side, step in zip(block_zyx, encoder.strides[-1], strict=True)]
    patch = (2 * sides[0], sides[1], sides[2])  # two cells of the coarsest map: one cannot be normalised
    image = torch.randn(1, encoder.in_channels, *patch, generator=torch.Generator().manual_seed(0))
    image = image.to(next(module.parameters(), image).device)
    module = _arbitrary(module)
    gz, gy, gx = (torch.arange(side // block) for side, block in zip(patch, block_zyx, strict=True))
    every_other = (gz[:, None, None] + gy[:, None] + gx) % 2 == 0
    visible = _Discovered(every_other[None].to(image.device), block_zyx)
    shapes = _run_watched(module, visible, image * to_voxels(visible.visible, block_zyx))
    wanted = [
        (1, width, *(side // step for side, step in zip(patch, stride, strict=True)))
        for width, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    if shapes != wanted:
        raise ValueError(f"encoder: found maps of shapes {shapes}, wanted {wanted} by its channels and strides")
    _compare_with_dense(module, VisibleCells(torch.ones_like(visible.visible), block_zyx, visible.strides), image)
    return tuple(visible.strides)


def _check_module(name: str, module: nn.Module) -> None:
    """Refuse what the dry run would not see: it trusts these modules."""
    kind = f"{name}: found {type(module).__name__}"
    if any(value is not None and value.is_meta for value in (*module._parameters.values(), *module._buffers.values())):
        raise ValueError(f"{kind} on the meta device, wanted one with values")
    if isinstance(module, nn.InstanceNorm3d) and module.track_running_stats:
        raise ValueError(f"{kind} with running statistics, wanted none: they would be those of the visible cells")
    if isinstance(module, nn.MaxPool3d) and module.return_indices:
        raise ValueError(f"{kind} that returns indices, wanted return_indices=False")
    for plain in (nn.Conv3d, nn.AvgPool3d, nn.MaxPool3d):
        own = any(
            getattr(type(module), method, None) is not getattr(plain, method, None) or method in vars(module)
            for method in ("forward", "_conv_forward")
        )
        if isinstance(module, plain) and own:
            raise ValueError(f"{kind} with a forward of its own, wanted that of nn.{plain.__name__}")


class _Discovered(VisibleCells):
    """Visible cells that learn the strides from the grids they are asked for."""

    def __init__(self, visible: Tensor, block_zyx: Triple) -> None:
        super().__init__(visible, block_zyx, [(1, 1, 1)])
        self.strides: list[Triple] = []

    def on(self, grid: Triple) -> Cells | None:
        """Return the cells of any grid that divides the patch."""
        if any(side % cells for side, cells in zip(self.patch_zyx, grid, strict=True)):
            raise ValueError(f"encoder: found a map of {grid} cells, wanted divisors of the patch {self.patch_zyx}")
        z, y, x = (side // cells for side, cells in zip(self.patch_zyx, grid, strict=True))
        if (z, y, x) not in self.strides:
            self.strides.append((z, y, x))
            self.add((z, y, x))
        return super().on(grid)

    def is_map(self, value: object) -> bool:
        """Whether it has a grid that a module has been asked for, or that of the volume."""
        return isinstance(value, Tensor) and value.ndim == 5 and tuple(value.shape[2:]) in self._grids

    def leaks(self, value: Tensor) -> bool:
        """Whether a map is other than zero in a hidden cell."""
        cells = self._grids[value.shape[2], value.shape[3], value.shape[4]]
        return cells is not None and bool((value[cells.hidden.bool().expand_as(value)] != 0).any())


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at every operation on maps outside the modules that mind what is hidden."""

    def __init__(self, visible: _Discovered) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.visible = visible
        self.running: list[tuple[str, nn.Module]] = []

    def call(self, name: str, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a module's forward, knowing which it is."""
        self.running.append((name, module))
        try:
            return forward(*args, **kwargs)
        finally:
            self.running.pop()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, or refuse it."""
        kwargs = kwargs or {}
        if op is torch.ops.aten.empty_like.default or any(isinstance(module, MINDFUL) for _, module in self.running):
            return op(*args, **kwargs)  # an empty tensor leaks nothing until something is written into it
        if torch.Tag.nondeterministic_seeded in op.tags:
            self._refuse(op, "draws random numbers")
        elementwise = torch.Tag.pointwise in op.tags or op.overloadpacket in ALSO_ELEMENTWISE
        if not elementwise and any(self.visible.is_map(value) for value in tree_leaves((args, kwargs))):
            self._refuse(op, "is not elementwise")
        found = op(*args, **kwargs)
        if self.visible.is_map(found) and self.visible.leaks(found):
            self._refuse(op, "does not keep zeros zero")
        return found

    def _refuse(self, op: Any, reason: str) -> None:
        name, module = self.running[-1]
        raise ValueError(
            f"{name}: {type(module).__name__} calls {op}, which {reason}; wanted nothing but nn.Conv3d, nn.AvgPool3d, "
            f"nn.MaxPool3d and nn.InstanceNorm3d as modules, and elementwise operations that keep zeros zero"
        )


def _run_watched(encoder: nn.Module, visible: _Discovered, image: Tensor) -> list[tuple[int, ...]]:
    """Return the shapes of the maps."""
    twin = _twin(encoder, visible)
    watch = _Watch(visible)
    for name, part in twin.named_modules(prefix="encoder"):
        part.__dict__["forward"] = partial(watch.call, name, part, part.forward)
    with watch:
        maps = twin(image)
    return [tuple(x.shape) for x in maps]


def _compare_with_dense(encoder: nn.Module, visible: VisibleCells, image: Tensor) -> None:
    with torch.random.fork_rng([image.device] if image.is_cuda else []):  # a norm is not watched, and may draw
        pairs = zip(_twin(encoder, visible)(image), _twin(encoder, None)(image), strict=True)
    for level, (found, wanted) in enumerate(pairs):
        off, size = float((found - wanted).abs().max()), float(wanted.abs().max())
        if not off <= TOLERANCE * size:
            raise ValueError(
                f"encoder: with nothing hidden, map {level} is off by {off} from that of the dense encoder, of at most "
                f"{size}; is there an nn.InstanceNorm3d that does more than normalise?"
            )


def _twin(encoder: nn.Module, visible: VisibleCells | None) -> nn.Module:
    """Return a copy of the tree with buffers of its own: a forward may change them."""
    twin = copy_tree(encoder, visible, {})
    for part in twin.modules():
        part._buffers = {name: None if value is None else value.clone() for name, value in part._buffers.items()}
    return twin


def _arbitrary(encoder: nn.Module) -> nn.Module:
    """Return a copy of the tree in training, with arbitrary float32 parameters and buffers."""
    twin = copy_tree(encoder, None, {})
    generator = torch.Generator().manual_seed(0)
    for part in twin.modules():
        part.training = True
        part._parameters = {name: _numbers(value, generator) for name, value in part._parameters.items()}  # type: ignore[misc]
        part._buffers = {name: _numbers(value, generator) for name, value in part._buffers.items()}
    return twin


def _numbers(value: Tensor | None, generator: torch.Generator) -> Tensor | None:
    """Return a tensor of the same shape: a kernel's numbers have either sign, others are positive."""
    if value is None or not value.is_floating_point():
        return value
    fan_in = math.prod(value.shape[1:])
    if fan_in > 1:
        numbers = torch.randn(value.shape, generator=generator) / math.sqrt(fan_in)
    else:
        numbers = torch.rand(value.shape, generator=generator) + 0.5
    return numbers.to(value.device)
