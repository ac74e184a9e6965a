"""What an objective is given and what it gives: the protocols and dicts of this package's border."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypedDict, runtime_checkable

from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

Triple = tuple[int, int, int]
"""One number for each of (z, y, x)."""


@runtime_checkable
class Encoder(Protocol):
    """A module from volumes to one map per stage: `encoder(x) == encoder.stages(encoder.stem(x))`.

    Attributes:
        in_channels: channels of the volumes.
        channels: channels of every map, finest first.
        strides: voxels per cell of every map along (z, y, x), finest first.
        stem: the first convolution unit; state keys `stem.*`.
        stages: all that follows, `stages(h) -> list[Tensor]`; state keys `stages.*`.
    """

    in_channels: int
    channels: tuple[int, ...]
    strides: tuple[Triple, ...]

    if TYPE_CHECKING:  # submodules: from Python 3.12 on isinstance() cannot see what nn.Module serves by __getattr__

        @property
        def stem(self) -> nn.Module:
            """Volumes in, features at the same or a lower resolution out."""

        @property
        def stages(self) -> Callable[[Tensor], list[Tensor]]:
            """The stem's output in, one map per stage out."""

    def __call__(self, x: Tensor, /) -> list[Tensor]:
        """Return the maps of x (B, C, Z, Y, X), finest first."""
        ...


@runtime_checkable
class Neck(Protocol):
    """A module from the encoder's maps to maps, finest first; `strides[i]` is voxels per cell along (z, y, x)."""

    channels: tuple[int, ...]
    strides: tuple[Triple, ...]

    def __call__(self, maps: list[Tensor], /) -> list[Tensor]:
        """Return maps of `channels`."""
        ...


class DatasetInfo(TypedDict):
    """What one dataset of a supervised pre-training has annotated."""

    channels: int
    """Channels of its volumes."""
    classes: list[str]
    """Names of the regions."""
    regions: list[list[int]]
    """Region r is the voxels whose `semantic` value is in regions[r]."""
    activation: Literal["sigmoid", "softmax"]
    """"softmax": the regions are disjoint and a background logit is added; "sigmoid": they may overlap."""


class Batch(TypedDict, total=False):
    """What the data loader hands over. An objective reads the keys it lists in `requires` and ignores the rest."""

    image: Float[Tensor, "b c z y x"] | list[Tensor]
    """Volumes; a list of (C_i, Z, Y, X) where the samples differ in channels."""
    seed: Int64[Tensor, " b"]
    """One number >= 0 per sample, the only source of randomness. Keep it on the CPU: it is read there."""
    valid: Bool[Tensor, "b z y x"]
    """False where a voxel is padding, defaced or outside the scan."""
    semantic: Int[Tensor, "b z y x"]
    """Class per voxel, -1 = ignore."""
    instances: Int[Tensor, "b z y x"]
    """0 = background, k + 1 = row k of the sample's boxes."""
    boxes: list[Tensor]
    """(n, 6) float32 per sample, (z0, y0, x0, z1, y1, x1) in voxel edges of the patch, half-open."""
    labels: list[Tensor]
    """(n,) int64 per sample, the class of each box."""
    dataset: list[str]
    """The dataset of each sample."""
    case_id: list[str]
    """The scan of each sample."""
    start: Int64[Tensor, "b 3"]
    """First voxel of the patch in its scan, (z, y, x)."""
    affine: Float[Tensor, "b 4 4"]
    """Voxel-centre index (x, y, z) of the patch -> RAS mm; float64."""
    index: Int64[Tensor, " b"]
    """Number of the sample in the run."""


@dataclass(frozen=True)
class Parts:
    """What an objective is built from. Read what you need, ignore the rest; the encoder becomes the objective's own.

    Raises:
        ValueError: the patch is not three positive numbers.
    """

    encoder: Encoder
    """The network to pre-train."""
    make_neck: Callable[[], Neck]
    """Makes a new neck for this encoder's maps, such as a U-Net decoder."""
    make_stem: Callable[[int], nn.Module]
    """Makes a new stem of this encoder for volumes with so many channels."""
    in_channels: int
    """Channels of the volumes."""
    patch_zyx: Triple
    """Voxels of the training patch."""
    datasets: Mapping[str, DatasetInfo] = field(default_factory=dict)
    """The annotated datasets by name; empty when there are none."""

    def __post_init__(self) -> None:
        if len(self.patch_zyx) != 3 or min(self.patch_zyx) < 1:
            raise ValueError(f"patch_zyx: found {self.patch_zyx}, wanted three positive numbers (z, y, x)")


@runtime_checkable
class Objective(Protocol):
    """A pre-training method: an nn.Module that turns a batch into a loss.

    The loss is a float32 scalar with a gradient, whatever the autocast dtype; every other entry is a detached scalar
    to be logged. All randomness comes from `batch["seed"]`, one generator per sample (see `sample_generators`).

    Seven more members are optional:

    - `reconstruct(batch)`: dict of `input`, `shown`, `output`, all (B, C, Z, Y, X), where there is something to see.
      It changes neither the batch nor the objective.
    - `after_step()`: called once after every optimiser step.
    - `teacher`: a submodule that follows the encoder: in eval mode, without gradient, in the state dict, moved
      towards it only in `after_step()` and never exported.
    - `stems`: a ModuleDict from dataset to stem, where each dataset has its own. They stand in for `encoder.stem`,
      which may be frozen, and `image` may be a list of samples with different channels.
    - `deterministic`: True says that nothing is drawn, so that the seed has no effect. It is taken as False if absent.
    - `ddp_exact`: False says that the mean of the gradients of equal parts of a batch is not the gradient of the
      whole, because the loss compares samples or counts voxels over the batch. It is taken as True if absent.
    - `own_augmentation`: True says that the method draws all its changes of a patch itself, so that a program should
      not rotate, scale or mirror it before. It is taken as False if absent.

    Attributes:
        encoder: the trained module, exportable as it is: a fresh encoder with its weights makes the same maps.
        requires: the batch keys without which `forward` raises ValueError.
        patch_multiple: the patch has to be a multiple of this along (z, y, x), and this one of the coarsest stride.
    """

    if TYPE_CHECKING:  # as in Encoder

        @property
        def encoder(self) -> Any:
            """The trained module; an Encoder."""

    requires: frozenset[str]
    patch_multiple: Triple

    def __call__(self, batch: Batch, /) -> dict[str, Tensor]:
        """Return {"loss": ..., name: ...}."""
        ...


@runtime_checkable
class ObjectiveConfig(Protocol):
    """The settings of a method: a frozen dataclass, registered in the entry-point group `girih.objectives`.

    Every field is a str, int, float, bool or a tuple of these, with a default and a docstring: the fields are the
    command line. A class attribute or property `neck_maps` is optional: "finest" says that of the neck's maps only the
    first is read, "deep" all but the coarsest, so that a program need not make the others; if absent, all are made.
    """

    if TYPE_CHECKING:  # or issubclass() could not tell a config class
        __dataclass_fields__: ClassVar[dict[str, Any]]

    def build(self, parts: Parts, /) -> Objective:
        """Return a new objective.

        Raises:
            ValueError: the parts do not suit, such as a patch that is no multiple of `patch_multiple`.
        """
        ...
