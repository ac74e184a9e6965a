"""The kit finds every flaw: for each check an objective that is broken in one way and fails that check and no other."""

import copy
import re
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import Tensor, distributed, nn

from girih_ssl import Batch, Parts, VoxelHead, check_batch, sample_generators
from girih_ssl.testing import check_objective
from girih_ssl.testing.config_checks import SOURCE
from girih_ssl.testing.contract import CHECKS


class Denoiser(nn.Module):
    """A sound objective: restore voxels from noise (Vincent et al. 2008). The flawed ones override one thing."""

    requires = frozenset({"image", "seed"})

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.encoder, self.neck, self.in_channels = parts.encoder, parts.make_neck(), parts.in_channels
        self.head = VoxelHead(self.neck.channels[0], parts.in_channels)
        self.patch_multiple = self.checked_multiple = parts.encoder.strides[-1]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        image = check_batch(
            batch, requires=self.requires, in_channels=self.in_channels, patch_multiple=self.checked_multiple
        )
        target = self.look(image)
        noisy = target + self.noise(batch, image)
        return self.score(self.compare(self.restore(noisy), target))

    def look(self, image: Tensor) -> Tensor:
        return image

    def noise(self, batch: Batch, image: Tensor) -> Tensor:
        return self.seeded(batch["seed"]).to(image.device)

    def seeded(self, seed: Tensor) -> Tensor:
        return torch.tensor([draw(g) for g in sample_generators(seed)])[:, None, None, None, None]

    def restore(self, noisy: Tensor) -> Tensor:
        return self.head(self.neck(self.encode(noisy)), tuple(noisy.shape[2:]))

    def compare(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.float() - target).square()

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


@torch.compiler.disable
def draw_all(size: int, seed: int) -> Tensor:
    return torch.randn(size, 1, 1, 1, 1, generator=torch.Generator().manual_seed(seed))


class RequiresIsASet(Denoiser):
    requires = {"image", "seed"}


class LossHasAShape(Denoiser):
    def score(self, error):
        return {"loss": error.mean()[None]}


class LossIsHalf(Denoiser):
    def score(self, error):
        half = torch.is_autocast_enabled("cpu")
        return {"loss": error.mean().bfloat16() if half else error.mean()}


class ComparesInHalf(Denoiser):
    def compare(self, output, target):
        return ((output + 1000) - (target.to(output.dtype) + 1000)).square().float()


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


class OneGeneratorForAll(Denoiser):
    ddp_exact = False  # or the check of two processes would see it too

    def seeded(self, seed):
        return draw_all(len(seed), int(seed.sum()))


class SeedsByPlace(Denoiser):
    ddp_exact = False

    def seeded(self, seed):
        return super().seeded(seed + torch.arange(len(seed)))


class DrawsGlobally(Denoiser):
    def look(self, image):
        torch.rand(1)
        return image


class TwoDifferentSidesAtMost(Denoiser):
    def look(self, image):
        if len(set(image.shape[2:])) > 2:
            raise RuntimeError("three different sides")
        return image


class SaysFour(Denoiser):
    def __init__(self, parts):
        super().__init__(parts)
        self.patch_multiple = self.checked_multiple = (4, 4, 4)


class TakesTheStrideAlongZ(Denoiser):
    def __init__(self, parts):
        super().__init__(parts)
        self.patch_multiple = self.checked_multiple = parts.encoder.strides[-1][:1] * 3


class TakesMapsForVoxels(Denoiser):
    def __init__(self, parts):
        super().__init__(parts)
        self.head = nn.Conv3d(self.neck.channels[0], parts.in_channels, kernel_size=1)

    def restore(self, noisy):
        return self.head(self.neck(self.encode(noisy))[0])


class DividesByOneLess(Denoiser):
    def score(self, error):
        per_sample = error.mean((1, 2, 3, 4))
        spread = (per_sample - per_sample.mean()).square().sum() / (len(per_sample) - 1)
        return {"loss": error.mean() + 0 * spread}


class WantsPairs(Denoiser):
    ddp_exact = False

    def score(self, error):
        if len(error) == 1:
            return super().score(error)
        return {"loss": error.unflatten(0, (-1, 2)).mean()}


class FirstChannelOnly(Denoiser):
    def look(self, image):
        return image[:, :1].expand_as(image)


class DividesBySpread(Denoiser):
    def look(self, image):
        return (image - image.mean((2, 3, 4), keepdim=True)) / image.std((2, 3, 4), keepdim=True)


class LooksUpKeys(Denoiser):
    def forward(self, batch):
        [batch[key] for key in ("image", "seed")]
        return super().forward(batch)


class TakesAnyPatch(Denoiser):
    def __init__(self, parts):
        super().__init__(parts)
        self.checked_multiple = (1, 1, 1)


class ReconstructsSmall(Denoiser):
    def reconstruct(self, batch):
        return dict.fromkeys(("input", "shown", "output"), batch["image"][..., ::2])


class ReconstructsInEval(Denoiser):
    def reconstruct(self, batch):
        self.eval()
        return super().reconstruct(batch)


class ReconstructsInPlace(Denoiser):
    def reconstruct(self, batch):
        return super().reconstruct({"image": batch["image"].clamp_(-1, 1)})


class ReconstructsAtRandom(Denoiser):
    def reconstruct(self, batch):
        return super().reconstruct({"image": torch.rand_like(batch["image"])})


class ReconstructsNaN(Denoiser):
    def reconstruct(self, batch):
        return super().reconstruct({"image": batch["image"] * float("nan")})


class ReconstructsAnother(Denoiser):
    count = 0

    def reconstruct(self, batch):
        self.count += 1
        return super().reconstruct({"image": batch["image"] + self.count})


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


class TeacherFlees(Teacher):
    @torch.no_grad()
    def after_step(self):
        for mine, theirs in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            mine.lerp_(theirs, -0.1)


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


class ExchangesNorms(Denoiser):
    def __init__(self, parts):
        for unit in (parts.encoder.stem, *parts.encoder.stages):
            unit[1] = nn.GroupNorm(2, unit[1].num_features)  # the same keys and shapes
        super().__init__(parts)


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


class AveragesTwiceBesideALargeGradient(AveragesTwiceOverProcesses):
    def __init__(self, parts):
        super().__init__(parts)
        self.temperature = nn.Parameter(torch.ones(()))

    def score(self, error):
        return {"loss": super().score(error)["loss"] + 1e4 * (self.temperature - 2).square()}


class HasLayerForOneCase(Denoiser):
    requires = frozenset({"image", "seed", "case_id"})

    def __init__(self, parts):
        super().__init__(parts)
        self.special = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        found = super().forward(batch)
        return {"loss": found["loss"] * self.special} if "case_0" in batch["case_id"] else found


class Uncited(Denoiser):
    """Restore voxels from noise of 2048 levels, in HU from -2000 to 2000."""


class ReturnsATensor(Denoiser):
    def forward(self, batch):
        return super().forward(batch)["loss"]


class CallsItError(Denoiser):
    def forward(self, batch):
        return {"error": super().forward(batch)["loss"]}


class EncoderHasAnotherName(Denoiser):
    def __init__(self, parts):
        super().__init__(parts)
        self.backbone = self.encoder
        del self.encoder


class MultipleIsANumber(Denoiser):
    def __init__(self, parts):
        super().__init__(parts)
        self.patch_multiple = 4


class NoModule:
    def __init__(self, parts):
        pass


class KeepsNoiseOnTheCpu(Denoiser):
    def noise(self, batch, image):
        return self.seeded(batch["seed"]).expand(image.shape)


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


@dataclass(frozen=True)
class DocstringByDataclass(Build):
    like: str = "He et al. 2022"
    """Stands in the docstring that dataclass makes up, which cites nothing."""

    def build(self, parts):
        return Uncited(parts)


@dataclass(frozen=True)
class Particular(Build):
    """Takes one patch only."""

    def build(self, parts):
        if any(side % 20 for side in parts.patch_zyx):
            raise ValueError("wanted multiples of 20")
        return Denoiser(parts)


SOUND = [Config(), Config("Teacher"), Config("PerDataset")]
FLAWED = [
    ("config_is_a_frozen_dataclass", Thawed()),
    ("config_fields_have_defaults", NoDefault(1.0)),
    ("config_field_types", WrongType()),
    ("config_field_docstrings", NoFieldDocstring()),
    ("docstring_cites_a_source", Config("Uncited")),
    ("docstring_cites_a_source", DocstringByDataclass()),
    ("members", Config("RequiresIsASet")),
    ("loss_is_a_float32_scalar", Config("LossHasAShape")),
    ("loss_under_bfloat16_autocast", Config("LossIsHalf")),
    ("loss_under_bfloat16_autocast", Config("ComparesInHalf")),
    ("other_entries_are_detached_scalars", Config("EntryHasGradient")),
    ("input_is_not_modified", Config("ClampsInPlace")),
    ("same_seed_same_loss", Config("TakesTurns")),
    ("every_seed_matters", Config("IgnoresSeed")),
    ("every_seed_matters", Config("DrawsAndDeniesIt")),
    ("order_of_samples", Config("OneGeneratorForAll")),
    ("order_of_samples", Config("SeedsByPlace")),
    ("global_random_state_is_untouched", Config("DrawsGlobally")),
    ("anisotropic_patch", Config("TwoDifferentSidesAtMost")),
    ("anisotropic_strides", Config("SaysFour")),
    ("anisotropic_strides", Config("TakesTheStrideAlongZ")),
    ("anisotropic_strides", Config("TakesMapsForVoxels")),
    ("batch_of_one", Config("DividesByOneLess")),
    ("batch_of_three", Config("WantsPairs")),
    ("one_and_four_channels", Config("FirstChannelOnly")),
    ("list_of_images", Config("FailsOnAList")),
    ("list_of_images", Config("TakesTensorsOnly")),
    ("constant_patch", Config("DividesBySpread")),
    ("missing_key_raises", Config("LooksUpKeys")),
    ("indivisible_patch_raises", Config("TakesAnyPatch")),
    ("reconstruct", Config("ReconstructsSmall")),
    ("reconstruct", Config("ReconstructsInEval")),
    ("reconstruct", Config("ReconstructsInPlace")),
    ("reconstruct", Config("ReconstructsAtRandom")),
    ("reconstruct", Config("ReconstructsNaN")),
    ("reconstruct", Config("ReconstructsAnother")),
    ("loss_falls_on_one_batch", Config("Ascends")),
    ("gradient_reaches_every_encoder_parameter", Config("FreezesEncoder")),
    ("no_unused_parameter", Config("HasSpareLayer")),
    ("state_round_trip", Config("ForgetsScale")),
    ("state_round_trip", Config("StateIsNoTensor")),
    ("resume_equals_uninterrupted", Config("TeacherForgetsItsStep")),
    ("resume_equals_uninterrupted", Config("SchedulesByCounting")),
    ("teacher", Config("TeacherStands")),
    ("teacher", Config("TeacherFlees")),
    ("teacher", Config("TeacherTrains")),
    ("teacher", Config("TeacherHasGradient")),
    ("teacher", Config("TeacherMovesInForward")),
    ("exported_encoder_loads", Config("EncoderHasLuggage")),
    ("exported_encoder_loads", Config("ExchangesNorms")),
    ("compiles", Config("CompilesToAnother")),
    ("two_processes_equal_one", Config("SumsOverBatch")),
    ("two_processes_equal_one", Config("AveragesTwiceOverProcesses")),
    ("two_processes_equal_one", Config("AveragesTwiceBesideALargeGradient")),
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


LOSS, MODULE = {"loss_is_a_float32_scalar", "batch_of_one"}, {"members", "teacher", "exported_encoder_loads"}


@pytest.mark.parametrize(
    ("flaw", "names", "message"),
    [
        ("ReturnsATensor", LOSS, "forward: found Tensor, wanted a dict with the tensor 'loss'"),
        ("CallsItError", LOSS, "forward: found a dict of ['error'], wanted a dict with the tensor 'loss'"),
        ("EncoderHasAnotherName", LOSS | MODULE, "encoder: found NoneType, wanted an nn.Module: write self.encoder ="),
        ("MultipleIsANumber", LOSS | MODULE, "patch_multiple: found 4, wanted three positive integers"),
        ("NoModule", LOSS | MODULE, "build: found NoModule, wanted an nn.Module"),
    ],
)
def test_what_no_check_can_do_without_is_missed_in_the_same_words_by_all(flaw, names, message):
    found = failures(Config(flaw), names)
    assert set(found) == names
    assert all(text.startswith("ContractError") and message in text for text in found.values()), found


def test_a_config_that_refuses_the_first_patch_is_told_what_to_pass():
    (found,) = failures(Particular(), {"members"}).values()
    assert re.search(r"refuses a patch of \(192, 192, 192\) .*: wanted multiples of 20; pass patch_zyx=", found)
    assert failures(Particular(), {"members", "anisotropic_strides"}, patch_zyx=(20, 20, 20)) == {}


def test_a_config_without_source_code_is_told_so():
    names = {"__name__": "nowhere", "dataclass": dataclass, "Build": Build}
    exec("@dataclass(frozen=True)\nclass Typed(Build):\n    noise: float = 1.0", names)
    found = failures(names["Typed"](), {"config_field_docstrings"})
    assert "Typed: found no source code, wanted a class in a file" in found["config_field_docstrings"]


@pytest.mark.parametrize(
    ("text", "cited"),
    [
        ("(He et al. 2022)", True),
        ("SparK: Tian et al., ICLR 2023", True),
        ('Xie et al., "SimMIM",\nCVPR 2022', True),
        ("Tarvainen and Valpola, NIPS 2017", True),
        ("Chen & He (2021)", True),
        ("Noroozi, 2016", True),
        ("arXiv 2306.16925", True),
        ("https://arxiv.org/abs/2301.03580", True),
        ("doi:10.1016/j.media.2020.101840", True),
        ("noise with 2048 units", False),
        ("from -2000 to 2000", False),
        ("see arXiv", False),
        ("of 2022", False),
        ("10.5 voxels", False),
    ],
)
def test_what_counts_as_a_source(text, cited):
    assert bool(SOURCE.search(text)) == cited


def test_on_another_device_network_and_batch_are_there_and_the_seeds_are_not():
    # No value can be read of the meta device; it stands for a GPU in the one check that reads none.
    names = {"other_entries_are_detached_scalars"}
    assert failures(Config(), names, device="meta") == {}
    (found,) = failures(Config("KeepsNoiseOnTheCpu"), names, device="meta").values()
    assert "device" in found


def failures(config, names, **options):
    found = {}
    for check in check_objective(config, **options):
        if check.name in names:
            try:
                check()
            except Exception as error:  # noqa: BLE001  # a flawed objective may raise anything
                found[check.name] = repr(error)
    return found
