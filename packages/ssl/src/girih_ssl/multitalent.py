"""Supervised segmentation of many datasets at once, each with its own input stem, its own classes and its own heads."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from girih_ssl.batch import check_cells, check_patch
from girih_ssl.dataset_heads import DatasetHeads
from girih_ssl.interfaces import Batch, DatasetInfo, Encoder, Neck, Parts
from girih_ssl.rank_sums import sum_over_ranks
from girih_ssl.region_loss import RegionSums, dice
from girih_ssl.supervision import level_weights, supervised_levels

LABEL_TYPES = (torch.int16, torch.int8, torch.int32, torch.int64)  # signed: -1 is ignored


@dataclass(frozen=True)
class MultiTalentConfig:
    """Segment all annotated datasets, each with its own stem and heads (Ulrich et al., MICCAI 2023, "MultiTalent")."""

    deep_supervision: bool = True
    """Whether coarser maps of the neck have a loss too, level l with weight 2^-l; else the finest alone."""
    default_stem: str = ""
    """Dataset whose stem is also the encoder's own, as which it is exported; empty: the first dataset."""

    @property
    def neck_maps(self) -> str:
        """Which of the neck's maps are read."""
        return "deep" if self.deep_supervision else "finest"

    def build(self, parts: Parts) -> "MultiTalent":
        """Return the objective.

        Raises:
            ValueError: there are no datasets; what one says of itself is not sound, or its name cannot be part of the
                name of a tensor; `default_stem` is none of them; the patch is no multiple of `patch_multiple`, or not
                more than one; or the neck does not suit, see `supervised_levels`.
        """
        if not parts.datasets:
            raise ValueError(
                "datasets: found none, wanted at least one with semantic labels: MultiTalent is supervised pre-training"
            )
        multitalent = MultiTalent(parts.encoder, parts.make_neck(), parts.make_stem, parts.datasets, self)
        check_patch(parts.patch_zyx, multitalent.patch_multiple)
        check_cells(parts.patch_zyx, multitalent.patch_multiple)
        return multitalent


def dataset_weights(counts: Mapping[str, int]) -> dict[str, float]:
    """Return how often to draw from each dataset: proportional to the root of its number of cases, sum 1.

    MultiTalent (Ulrich et al. 2023) draws a case from a dataset of n with a probability proportional to 1 / sqrt(n):
    large datasets are seen more often than small ones, but less than their size says.

    Raises:
        ValueError: there is no dataset, or one has no case.
    """
    if not counts:
        raise ValueError("counts: found no dataset, wanted at least one")
    for name, n in counts.items():
        if n < 1:
            raise ValueError(f"counts: found {n} cases of dataset {name!r}, wanted 1 or more")
    roots = {name: math.sqrt(n) for name, n in counts.items()}
    total = sum(roots.values())
    return {name: root / total for name, root in roots.items()}


class MultiTalent(nn.Module):
    r"""Segmentation of many datasets at once, each with its own classes (Ulrich et al. 2023).

    "MultiTalent: A Multi-Dataset Approach to Medical Image Segmentation", MICCAI 2023.

    Sample b of dataset d_b goes through that dataset's stem, then through the shared stages and neck, then through that
    dataset's heads: h_b = stems[d_b](image_b), maps = neck(encoder.stages(h)), z = heads[d_b][l](maps[l]). Labels are
    never merged, so classes of different datasets may overlap and contradict each other, and so may the regions of one
    dataset with `activation = "sigmoid"`. A voxel counts for the classes of its own dataset only. For dataset d with
    samples B_d of the batch B, regions r = 1..R, and level l, the sums running over the scored voxels of B_d:

        L_dl = sum CE(z, t) / voxels + 1 - 1/R sum_r (2 sum p_r t_r + s) / (sum p_r + sum t_r + s)
        loss = sum_l w_l sum_d |B_d| / |B| L_dl,    w_l = 2^-l / sum_k 2^-k,    s = 1e-5

    with p = sigmoid(z), CE the binary cross-entropy, mean over r; or p = softmax(z) over the regions and a background
    that has no Dice. This is batch Dice: intersections are summed over a dataset's samples before they are divided.
    Under torch.distributed all sums run over the samples of all processes, so N processes train as one would with the
    joined batch. A voxel is scored unless its label is negative or `valid` False; a label in no region is background.

    Levels (`supervised_levels`): the maps that the neck makes but the coarsest, whose weight would be 0; l counts from
    the finest. Logits of a finest map that is coarser than the patch are brought to its grid, trilinearly; for other
    levels the labels are brought to the map's grid, voxel by voxel centre (`at_strides`). A U-Net decoder on six stages
    has the levels 0 to 3; of a U-FPN all maps but the coarsest count, which then has to be made without output there.

    Published setting (Eckstein et al. 2025, "The Missing Piece", section 2.2): ResEncL U-Net on patches of 192^3 voxels
    with batch 12, and Retina U-Net with a segmentation head on every level of its U-FPN on 128^3 with batch 48; 65
    datasets at 1 mm, z-scored, drawn by `dataset_weights`; 4000 epochs of 250 steps, SGD with learning rate 1e-2 and
    polynomial decay; else as nnU-Net: Nesterov momentum 0.99, weight decay 3e-5, gradient norm clipped at 12.

    Deviations from the public code (MultiTalent v2, which Eckstein et al. used):
        - Dice pools the samples of a dataset over the batch and over processes. There it is each sample's own in
          distributed training. CE and Dice are means over classes, as there; in v1 (2023) they are sums, so that a
          dataset counts by its number of classes, and Dice is not smoothed.
        - A dataset of more than 20 classes is one dataset. There it is split, silently, into several with a stem each.
        - 1 - Dice for -Dice, which is the same but for a constant, and the loss is not negative.
        - Invalid voxels are left out.

    Stems and heads of datasets that the batch lacks get a gradient of exactly 0, not none, so DistributedDataParallel
    needs no `find_unused_parameters`; an optimiser's weight decay and momentum move them all the same.

    The encoder's own stem is the one of `default_stem`, a single module with two names: what is exported is trained.
    A state dict holds it under both, as tensors of their own. `encoder.in_channels` follows it.

    A batch without a scored voxel has loss 0 with gradient 0, and `scored` says so. NaN in a patch makes the loss NaN:
    it is not searched for, because the answer would have to be waited for on a GPU.

    The loss takes one sample and level at a time and computes the logits again in the backward pass, so that however
    large the batch, it holds at most some 4.5 times the float32 logits of one sample's finest level at once, 13 GB with
    104 classes on 192^3 voxels.

    torch.compile makes one graph of a batch, without a break, but another for every sequence of datasets, and gives up
    after `torch._dynamo.config.recompile_limit` (8) of them. With several datasets compile `encoder.stages` and `neck`
    instead of the objective.

    Args:
        encoder: becomes the objective's own; its stem is replaced.
        neck: takes the encoder's maps. None of its parameters may lead to unsupervised maps only.
        make_stem: makes a new stem for so many channels.
        datasets: what each has annotated.
        config: levels and default stem.

    Attributes:
        requires: image (a tensor or a list of samples), semantic, dataset and seed; `valid` is used if it is there.
        deterministic: nothing is drawn; `seed` is asked for as by all objectives, and has no effect.
        patch_multiple: the encoder's coarsest stride.
        stems, heads: ModuleDicts by dataset; state keys `stems.<dataset>.*` and `heads.<dataset>.<level>.*`.
    """

    requires = frozenset({"image", "semantic", "dataset", "seed"})
    deterministic = True
    _level_weights: Float[Tensor, " l"]
    _owner: Int64[Tensor, " r"]
    _regions: Int64[Tensor, " d"]

    def __init__(
        self,
        encoder: Encoder,
        neck: Neck,
        make_stem: Callable[[int], nn.Module],
        datasets: Mapping[str, DatasetInfo],
        config: MultiTalentConfig | None = None,
    ) -> None:
        super().__init__()
        config = config or MultiTalentConfig()
        levels = supervised_levels(encoder, neck, deep=config.deep_supervision)
        default = config.default_stem or next(iter(datasets))
        if default not in datasets:
            raise ValueError(f"default_stem: found {default!r}, wanted one of {sorted(datasets)}")
        self.patch_multiple = encoder.strides[-1]
        self.strides = {level: neck.strides[level] for level in levels}
        self.channels = {name: info["channels"] for name, info in datasets.items()}
        self.encoder = cast(Any, encoder)
        self.neck = cast(Any, neck)
        widths = {level: neck.channels[level] for level in levels}
        heads = {name: DatasetHeads(name, info, widths) for name, info in datasets.items()}
        self.heads = cast(Any, _by_dataset(heads))
        self.stems = _by_dataset({name: make_stem(channels) for name, channels in self.channels.items()})
        self.encoder.stem, self.encoder.in_channels = self.stems[default], self.channels[default]
        self.register_state_dict_post_hook(_copy_own_stem)  # type: ignore[no-untyped-call]
        regions = [len(info["regions"]) for info in datasets.values()]
        owner = [d for d, n in enumerate(regions) for _ in range(n)]
        self.register_buffer("_level_weights", torch.tensor(level_weights(len(levels))), persistent=False)
        self.register_buffer("_owner", torch.tensor(owner), persistent=False)
        self.register_buffer("_regions", torch.tensor(regions), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, its summands `cross_entropy` and `dice_loss`, and `scored`: the share of voxels that counted.

        Raises:
            ValueError: a key is missing; a dataset is unknown; an image has other channels than its dataset, another
                shape than the others or is not floating; the patch is no multiple of `patch_multiple`, or not more
                than one; or `semantic`, `valid` or `seed` is not of its shape and type.
        """
        images = self._checked_images(batch)
        datasets = batch["dataset"]
        h = torch.cat([self.stems[name](image[None]) for name, image in zip(datasets, images, strict=True)])
        maps: list[Tensor] = self.neck(self.encoder.stages(h))
        found = self._sums(maps, batch)
        counts = torch.tensor([float(datasets.count(name)) for name in self.heads])
        losses = self._losses(found, counts.to(h.device, non_blocking=True), images[0].shape[1:].numel())
        absent = [p for name in self.heads if name not in datasets for p in self._parameters_of(name)]
        if absent:
            losses["loss"] = losses["loss"] + 0 * torch.cat([p.flatten() for p in absent]).sum()
        return losses

    def _sums(self, maps: list[Tensor], batch: Batch) -> RegionSums:
        """Return the sums of all datasets, (levels, datasets) and (levels, 3, regions of all), and 0 for the absent."""
        by_dataset = {name: heads.nothing() for name, heads in self.heads.items()}
        of_sample = {level: torch.split(maps[level], 1) for level in self.strides}
        for b, name in enumerate(batch["dataset"]):  # one at a time: what the loss holds does not grow with the batch
            semantic = batch["semantic"][b : b + 1]
            if "valid" in batch:
                semantic = semantic.masked_fill(~batch["valid"][b : b + 1], -1)
            own = {level: samples[b] for level, samples in of_sample.items()}
            sums = self.heads[name](own, self.strides, semantic)
            by_dataset[name] = RegionSums(*(x + y for x, y in zip(by_dataset[name], sums, strict=True)))
        entropy, voxels, overlap = zip(*by_dataset.values(), strict=True)
        return RegionSums(torch.stack(entropy, 1), torch.stack(voxels, 1), torch.cat(overlap, 2))

    def _losses(self, found: RegionSums, counts: Tensor, patch_voxels: int) -> dict[str, Tensor]:
        parts = (counts, *found)
        sums = sum_over_ranks(torch.cat([part.flatten() for part in parts]))
        split = torch.split(sums, [part.numel() for part in parts])
        counts, entropy, voxels, overlap = (total.view_as(part) for total, part in zip(split, parts, strict=True))
        weight = self._level_weights[:, None]
        share = counts / counts.sum()
        cross_entropy = (weight * share * entropy / voxels.clamp(min=1)).sum()
        dice_loss = (weight * (share / self._regions)[self._owner] * (1 - dice(overlap))).sum()
        return {
            "loss": cross_entropy + dice_loss,
            "cross_entropy": cross_entropy.detach(),
            "dice_loss": dice_loss.detach(),
            "scored": (voxels[0].sum() / (counts.sum() * patch_voxels)).detach(),
        }

    def _parameters_of(self, dataset: str) -> list[Tensor]:
        modules = (self.stems[dataset], self.heads[dataset])
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def _checked_images(self, batch: Batch) -> list[Tensor]:
        """Return the samples (C_b, Z, Y, X); only keys, shapes and dtypes are looked at, never values."""
        missing = sorted(self.requires - set(batch))
        if missing:
            raise ValueError(f"batch lacks {', '.join(missing)}: found {sorted(batch)}, wanted {sorted(self.requires)}")
        images, datasets = list(batch["image"]), batch["dataset"]
        if not isinstance(datasets, list | tuple) or not all(isinstance(name, str) for name in datasets):
            raise ValueError(f"dataset: found {datasets!r}, wanted a list with the name of every sample's dataset")
        if not images or len(images) != len(datasets):
            raise ValueError(f"dataset: found {len(datasets)} names for {len(images)} images, wanted one for each")
        unknown = sorted(set(datasets) - set(self.channels))
        if unknown:
            raise ValueError(f"dataset: found {', '.join(unknown)}, wanted some of {sorted(self.channels)}")
        for image, name in zip(images, datasets, strict=True):
            if not isinstance(image, Tensor) or not image.is_floating_point():
                kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
                raise ValueError(f"image of {name!r}: found {kind}, wanted a tensor of a floating dtype")
            if image.ndim != 4:
                raise ValueError(f"image of {name!r}: found shape {tuple(image.shape)}, wanted four axes (c, z, y, x)")
            wanted = (self.channels[name], *images[0].shape[1:])
            if tuple(image.shape) != wanted:
                raise ValueError(f"image of {name!r}: found shape {tuple(image.shape)}, wanted {wanted} (c, z, y, x)")
        patch = images[0].shape[1:]
        z, y, x = patch
        check_patch((z, y, x), self.patch_multiple)
        check_cells((z, y, x), self.patch_multiple)
        maps = (len(images), z, y, x)
        _check("semantic", batch["semantic"], maps, LABEL_TYPES)
        _check("seed", batch["seed"], (len(images),), (torch.int64,))
        if "valid" in batch:
            _check("valid", batch["valid"], maps, (torch.bool,))
        return images


def _by_dataset(modules: Mapping[str, nn.Module]) -> nn.ModuleDict:
    found = nn.ModuleDict()
    for name, module in modules.items():
        try:
            found[name] = module
        except KeyError as error:
            raise ValueError(f"dataset: found {name!r}, wanted another name: {error.args[0]}") from error
    return found


def _copy_own_stem(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    """Give the encoder's stem tensors of its own: safetensors refuses one tensor under two names."""
    for name in state:
        if name.startswith(f"{prefix}encoder.stem."):
            state[name] = state[name].detach().clone()


def _check(name: str, found: Any, shape: tuple[int, ...], kinds: tuple[torch.dtype, ...]) -> None:
    if not isinstance(found, Tensor):
        raise ValueError(f"{name}: found {type(found).__name__}, wanted a tensor {shape} {kinds[0]}")
    if tuple(found.shape) != shape or found.dtype not in kinds:
        wanted = " or ".join(str(kind) for kind in kinds)
        raise ValueError(f"{name}: found {tuple(found.shape)} {found.dtype}, wanted {shape} {wanted}")
