"""What crosses the borders of girih_detectors: nothing here has to be inherited or registered.

Axes are (z, y, x). A box is float32 (z0, y0, x0, z1, y1, x1) in voxel edges, half-open: one voxel at index i is
[i, i + 1].
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn


@runtime_checkable
class Pyramid(Protocol):
    """An nn.Module whose feature maps come finest first; `strides[i]` is voxels per cell along (z, y, x).

    Map i of an image (b, c, z, y, x) is (b, channels[i], z / strides[i][0], y / strides[i][1], x / strides[i][2]).
    """

    channels: tuple[int, ...]
    strides: tuple[tuple[int, int, int], ...]

    def __call__(self, x: Tensor, /) -> list[Tensor]:
        """Return one map per entry of `channels`."""
        ...


class Target(TypedDict):
    """The truth of one image (z, y, x)."""

    boxes: Tensor
    """(n, 6) float, inside the image, every side > 0."""
    labels: Tensor
    """(n,) int64, index into the detector's classes."""
    instances: NotRequired[Tensor]
    """(z, y, x) integer; value k + 1 marks voxels of row k of `boxes`, all inside its box; 0 the background."""
    valid: NotRequired[Tensor]
    """(z, y, x) bool; False voxels (padding, defaced, outside) teach nothing about the background."""
    seed: NotRequired[int | Tensor]
    """int64, another one for every image of every step; what a loss draws for this image is drawn from it."""
    case_id: NotRequired[str]
    """Named in errors."""


class Detections(TypedDict):
    """The boxes found in one image: descending score, ties by index. Tensors, or numpy from `detect_volume`."""

    boxes: Tensor | np.ndarray
    """(n, 6) float32 voxel edges of that image, clipped to it."""
    scores: Tensor | np.ndarray
    """(n,) float32 in [0, 1]."""
    labels: Tensor | np.ndarray
    """(n,) int64."""


@runtime_checkable
class Detector(Protocol):
    """A network that learns from and finds boxes. `forward` is the training loss, so that DDP and autocast see it."""

    classes: tuple[str, ...]

    if TYPE_CHECKING:  # a submodule: from Python 3.12 on isinstance() cannot see what nn.Module serves by __getattr__

        @property
        def pyramid(self) -> Any:
            """The feature pyramid, an nn.Module that meets `Pyramid`."""

    def __call__(self, images: Float[Tensor, "b c z y x"], targets: Sequence[Target], /) -> dict[str, Tensor]:
        """Return {"loss": scalar with gradient, other names: detached scalars}."""
        ...

    def tensors(self, images: Float[Tensor, "b c z y x"], /) -> tuple[Tensor, ...]:
        """Return the raw output; the part that torch.export and torch.compile take."""
        ...

    def detect(self, images: Float[Tensor, "b c z y x"], /) -> list[Detections]:
        """Return the post-processed boxes of every image, without gradient; the images stay as they are."""
        ...

    def postprocess(self, tensors: Sequence[Tensor], image_zyx: tuple[int, int, int], /) -> list[Detections]:
        """Return what `detect` returns, from the raw output of images of this many voxels."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As nn.Module; says on which device the detector is."""
        ...


@runtime_checkable
class Volume(Protocol):
    """An image (c, z, y, x) that is read piece by piece, by several threads; a numpy array or a lazy one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, z, y, x)."""
        ...

    def __getitem__(self, index: tuple[slice, slice, slice, slice], /) -> np.ndarray:
        """Return the voxels of four in-bounds slices as float32."""
        ...


@runtime_checkable
class Mask(Protocol):
    """A bool mask (z, y, x) that is read piece by piece."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x)."""
        ...

    def __getitem__(self, index: tuple[slice, slice, slice], /) -> np.ndarray:
        """Return the voxels of three in-bounds slices."""
        ...
