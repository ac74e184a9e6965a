"""The kit finds every flaw: for each check an objective that is broken in one way and fails that check and no other."""

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import Tensor, distributed, nn

from girih_ssl import Batch, Parts, VoxelHead, check_batch, sample_generators
from girih_ssl.testing import check_objective
from girih_ssl.testing.contract import CHECKS


class Denoiser(nn.Module):
    """A sound objective: restore voxels from noise (Vincent et al. 2008). The flawed ones override one thing."""

    requires = frozenset({"image", "seed"})
    patch_multiple = (4, 4, 4)
    checked_multiple = patch_multiple

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.encoder, self.neck, self.in_channels = parts.encoder, parts.make_neck(), parts.in_channels
        self.head = VoxelHead(self.neck.channels[0], parts.in_channels)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        image = check_batch(
            batch, requires=self.requires, in_channels=self.in_channels, patch_multiple=self.checked_multiple
        )
        target = self.look(image)
        output = self.head(self.neck(self.encode(target + self.noise(batch, image))), tuple(image.shape[2:]))
        return self.score((output.float() - target).square())

    def look(self, image: Tensor) -> Tensor:
        return image

    def noise(self, batch: Batch, image: Tensor) -> Tensor:
        return torch.tensor([draw(g) for g in sample_generators(batch["seed"])])[:, None, None, None, None]

    def encode(self, x: Tensor) -> list[Tensor]:
        return self.encoder(x)

    def score(self, error: Tensor) -> dict[str, Tensor]:
        return {"loss": error.mean(), "worst": error.detach().amax()}

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, Tensor]:
        return {"input": batch["image"], "shown": batch["image"], "output": batch["image"]}


@torch.compiler.disable
def draw(generator: torch.Generator) -> float:
    return float(torch.randn((), generator=generator))


class RequiresIsASet(Denoiser):
    requires = {"image", "seed"}


class LossHasAShape(Denoiser):
    def score(self, error):
        return {"loss": error.mean()[None]}


class LossIsHalf(Denoiser):
    def score(self, error):
        half = torch.is_autocast_enabled("cpu")
        return {"loss": error.mean().bfloat16() if half else error.mean()}


class EntryHasGradient(Denoiser):
    def score(self, error):
        return {"loss": error.mean(), "worst": error.amax()}


class ClampsInPlace(Denoiser):
    def look(self, image):
        return image.clamp_(-2, 2)


class TakesTurns(Denoiser):
    odd = False

    def score(self, error):
        self.odd = not self.odd
        return {"loss": error.mean() * (1 + 0.001 * self.odd)}


class IgnoresSeed(Denoiser):
    def noise(self, batch, image):
        return torch.ones(())


class IgnoresSeedAndSaysSo(IgnoresSeed):
    deterministic = True


class DrawsAndDeniesIt(Denoiser):
    deterministic = True


class DrawsGlobally(Denoiser):
    def look(self, image):
        torch.rand(1)
        return image


class CubesOnly(Denoiser):
    def look(self, image):
        if len(set(image.shape[2:])) > 1:
            raise RuntimeError("not a cube")
        return image


class DividesByOneLess(Denoiser):
    def score(self, error):
        per_sample = error.mean((1, 2, 3, 4))
        spread = (per_sample - per_sample.mean()).square().sum() / (len(per_sample) - 1)
        return {"loss": error.mean() + 0 * spread}


class FirstChannelOnly(Denoiser):
    def look(self, image):
        return image[:, :1].expand_as(image)


class LooksUpKeys(Denoiser):
    def forward(self, batch):
        [batch[key] for key in ("image", "seed")]
        return super().forward(batch)


class TakesAnyPatch(Denoiser):
    checked_multiple = (1, 1, 1)


class ReconstructsSmall(Denoiser):
    def reconstruct(self, batch):
        return dict.fromkeys(("input", "shown", "output"), batch["image"][..., ::2])


class Ascends(Denoiser):
    def score(self, error):
        return {"loss": 2 * error.mean().detach() - error.mean()}


class FreezesEncoder(Denoiser):
    def encode(self, x):
        return [m.detach() + 0 * m for m in self.encoder(x)]


class HasSpareLayer(Denoiser):
    def __init__(self, parts):
        super().__init__(parts)
        self.spare = nn.Linear(2, 2)


class ForgetsScale(Denoiser):
    def __init__(self, parts):
        super().__init__(parts)
        self.scale = 1 + float(torch.rand(()))

    def score(self, error):
        return {"loss": self.scale * error.mean()}


class Teacher(Denoiser):
    """Sound again, with a teacher (Tarvainen and Valpola 2017)."""

    def __init__(self, parts):
        super().__init__(parts)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False).eval()

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def after_step(self):
        for mine, theirs in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            mine.lerp_(theirs, 0.1)


class TeacherStands(Teacher):
    def after_step(self):
        pass


class TeacherTrains(Teacher):
    def train(self, mode=True):
        return nn.Module.train(self, mode)


class TeacherHasGradient(Teacher):
    def __init__(self, parts):
        super().__init__(parts)
        self.teacher.requires_grad_(True)


class TeacherMovesInForward(Teacher):
    def look(self, image):
        with torch.no_grad():
            next(self.teacher.parameters()).mul_(0.9)
        return image


class TeacherForgetsItsStep(Teacher):
    steps = 0  # not in the state dict, so a resumed run begins to average anew

    @torch.no_grad()
    def after_step(self):
        self.steps += 1
        for mine, theirs in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            mine.lerp_(theirs, 1 / (1 + self.steps))


class SchedulesByCounting(Denoiser):
    steps = 0

    def after_step(self):
        self.steps += 1

    def score(self, error):
        return {"loss": error.mean() + 0.1 * self.steps * error.square().mean()}


class StateIsNoTensor(Denoiser):
    def get_extra_state(self):
        return "warm"

    def set_extra_state(self, state):
        pass


class PerDataset(Denoiser):
    """Sound as well, with a stem per dataset (Ulrich et al. 2023): samples may differ in channels."""

    requires = frozenset({"image", "seed", "dataset"})

    def __init__(self, parts):
        super().__init__(parts)
        self.encoder.stem.requires_grad_(False)
        self.stems = nn.ModuleDict({name: parts.make_stem(info["channels"]) for name, info in parts.datasets.items()})
        self.head = VoxelHead(self.neck.channels[0], 1)

    def forward(self, batch):
        first = {"image": torch.stack([x[:1] for x in self.samples(batch)])} if "image" in batch else {}
        first = check_batch(batch | first, requires=self.requires, in_channels=1, patch_multiple=self.patch_multiple)
        noise = self.noise(batch, first)
        rows = zip(batch["dataset"], batch["image"], noise, strict=True)
        h = torch.cat([self.stems[name](image[None] + n) for name, image, n in rows])
        output = self.head(self.neck(self.encoder.stages(h)), tuple(first.shape[2:])).float()
        target = torch.stack([image.mean(0, keepdim=True) for image in batch["image"]])
        return self.score((output - target).square() + self.absent())

    def samples(self, batch):
        return batch["image"]

    def absent(self):  # DDP wants a gradient for the stem of a dataset that is not in the batch
        return 0 * sum(parameter.sum() for parameter in self.stems.parameters())


class TakesTensorsOnly(PerDataset):
    def samples(self, batch):
        return batch["image"].clone()


class AbsentDatasetHasNoGradient(PerDataset):
    def absent(self):
        return 0


class FailsOnAList(Denoiser):
    def forward(self, batch):
        if "image" in batch:
            batch["image"].dtype  # noqa: B018
        return super().forward(batch)


class EncoderHasLuggage(Denoiser):
    def __init__(self, parts):
        super().__init__(parts)
        self.encoder.register_buffer("mask", torch.ones(1))


class CompilesToAnother(Denoiser):
    def score(self, error):
        return {"loss": error.mean() * (2 if torch.compiler.is_compiling() else 1)}


class SumsOverBatch(Denoiser):
    def score(self, error):
        return {"loss": error.mean((1, 2, 3, 4)).sum()}


class SumsOverBatchAndSaysSo(SumsOverBatch):
    ddp_exact = False


class AveragesTwiceOverProcesses(Denoiser):
    def score(self, error):
        return {"loss": error.mean() / (distributed.get_world_size() if distributed.is_initialized() else 1)}


class HasLayerForOneCase(Denoiser):
    requires = frozenset({"image", "seed", "case_id"})

    def __init__(self, parts):
        super().__init__(parts)
        self.special = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        found = super().forward(batch)
        return {"loss": found["loss"] * self.special} if "case_0" in batch["case_id"] else found


class Uncited(Denoiser):
    """Restore voxels from noise."""


class Build:
    objective: ClassVar[type[nn.Module]] = Denoiser

    def build(self, parts):
        return self.objective(parts)


@dataclass(frozen=True)
class Config(Build):
    """Builds the class of that name."""

    flaw: str = "Denoiser"
    """Name of a class in this file."""

    def build(self, parts):
        return globals()[self.flaw](parts)


@dataclass
class Thawed(Build):
    """Not frozen."""

    noise: float = 1.0
    """Ignored."""


@dataclass(frozen=True)
class NoDefault(Build):
    """A field without default."""

    noise: float
    """Ignored."""


@dataclass(frozen=True)
class WrongType(Build):
    """A field that no command line can hold."""

    noise: dict[str, float] = field(default_factory=dict)
    """Ignored."""


@dataclass(frozen=True)
class NoFieldDocstring(Build):
    """A field without help."""

    noise: float = 1.0


SOUND = [Config(), Config("Teacher"), Config("PerDataset")]
FLAWED = [
    ("config_is_a_frozen_dataclass", Thawed()),
    ("config_fields_have_defaults", NoDefault(1.0)),
    ("config_field_types", WrongType()),
    ("config_field_docstrings", NoFieldDocstring()),
    ("docstring_cites_a_source", Config("Uncited")),
    ("members", Config("RequiresIsASet")),
    ("loss_is_a_float32_scalar", Config("LossHasAShape")),
    ("loss_under_bfloat16_autocast", Config("LossIsHalf")),
    ("other_entries_are_detached_scalars", Config("EntryHasGradient")),
    ("input_is_not_modified", Config("ClampsInPlace")),
    ("same_seed_same_loss", Config("TakesTurns")),
    ("every_seed_matters", Config("IgnoresSeed")),
    ("every_seed_matters", Config("DrawsAndDeniesIt")),
    ("global_random_state_is_untouched", Config("DrawsGlobally")),
    ("anisotropic_patch", Config("CubesOnly")),
    ("batch_of_one", Config("DividesByOneLess")),
    ("one_and_four_channels", Config("FirstChannelOnly")),
    ("list_of_images", Config("FailsOnAList")),
    ("list_of_images", Config("TakesTensorsOnly")),
    ("missing_key_raises", Config("LooksUpKeys")),
    ("indivisible_patch_raises", Config("TakesAnyPatch")),
    ("reconstruct", Config("ReconstructsSmall")),
    ("loss_falls_on_one_batch", Config("Ascends")),
    ("gradient_reaches_every_encoder_parameter", Config("FreezesEncoder")),
    ("no_unused_parameter", Config("HasSpareLayer")),
    ("state_round_trip", Config("ForgetsScale")),
    ("state_round_trip", Config("StateIsNoTensor")),
    ("resume_equals_uninterrupted", Config("TeacherForgetsItsStep")),
    ("resume_equals_uninterrupted", Config("SchedulesByCounting")),
    ("teacher", Config("TeacherStands")),
    ("teacher", Config("TeacherTrains")),
    ("teacher", Config("TeacherHasGradient")),
    ("teacher", Config("TeacherMovesInForward")),
    ("exported_encoder_loads", Config("EncoderHasLuggage")),
    ("compiles", Config("CompilesToAnother")),
    ("two_processes_equal_one", Config("SumsOverBatch")),
    ("two_processes_equal_one", Config("AveragesTwiceOverProcesses")),
    ("two_processes_equal_one", Config("HasLayerForOneCase")),
    ("two_processes_equal_one", Config("AbsentDatasetHasNoGradient")),
]


NAMES = [check.__name__.removeprefix("check_") for check in CHECKS]
SLOW = {"compiles", "two_processes_equal_one"}
IDS = [f"{name}-{getattr(config, 'flaw', type(config).__name__)}" for name, config in FLAWED]


@pytest.mark.parametrize("config", SOUND, ids=lambda config: config.flaw)
def test_a_sound_objective_passes(config):
    assert failures(config, NAMES) == {}


def test_an_objective_may_say_that_shares_of_a_batch_are_not_the_batch():
    assert failures(Config("SumsOverBatchAndSaysSo"), {"two_processes_equal_one"}) == {}


def test_an_objective_may_say_that_nothing_is_drawn():
    assert failures(Config("IgnoresSeedAndSaysSo"), {"every_seed_matters"}) == {}


@pytest.mark.parametrize(("name", "config"), FLAWED, ids=IDS)
def test_a_flawed_objective_fails_its_check_and_no_other(name, config):
    found = failures(config, {name}.union(NAMES) - (SLOW - {name}))
    assert list(found) == [name], found


@pytest.mark.long
@pytest.mark.parametrize(("name", "config"), FLAWED, ids=IDS)
def test_a_flawed_objective_fails_no_slow_check_but_its_own(name, config):
    found = failures(config, SLOW)
    assert list(found) == [name] * (name in SLOW), found


def test_every_check_has_a_flaw():
    assert {name for name, _ in FLAWED} == set(NAMES)


def failures(config, names):
    found = {}
    for check in check_objective(config):
        if check.name in names:
            try:
                check()
            except Exception as error:  # noqa: BLE001  # a flawed objective may raise anything
                found[check.name] = repr(error)
    return found
