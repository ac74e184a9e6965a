"""MultiTalent: its loss against an independent float64 one, what absent datasets get, and what is refused."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from girih_ssl import MultiTalent, MultiTalentConfig, Parts, dataset_weights
from girih_ssl.dataset_heads import DatasetHeads
from girih_ssl.testing import ObjectiveContract, check_objective, make_batch, tiny_parts

PATCH = (8, 12, 16)


class TestMultiTalent(ObjectiveContract):
    config = MultiTalentConfig


class TestFinestLevelOnly(ObjectiveContract):
    config = MultiTalentConfig(deep_supervision=False, default_stem="disjoint")

    def pytest_generate_tests(self, metafunc):  # the slow checks are about what both have
        fast = [
            check for check in check_objective(self.config) if check.name not in ("compiles", "two_processes_equal_one")
        ]
        metafunc.parametrize("check", fast, ids=[check.name for check in fast])


def sigmoid(regions, channels=1):
    return {
        "channels": channels,
        "classes": [f"class {r}" for r in range(len(regions))],
        "regions": regions,
        "activation": "sigmoid",
    }


def softmax(regions, channels=1):
    return {**sigmoid(regions, channels), "activation": "softmax"}


def build(datasets, config=MultiTalentConfig(), init=0, **parts):  # noqa: B008
    with torch.random.fork_rng():
        torch.manual_seed(init)
        given_parts = replace(tiny_parts(patch_zyx=PATCH), datasets=datasets, **parts)
        return config.build(given_parts)


def batch_of(datasets, channels=1, seed=0):
    batch = make_batch(len(datasets), channels, PATCH, seed)
    return {**batch, "dataset": list(datasets)}


def gradients(objective, batch):
    objective.zero_grad(set_to_none=True)
    objective(batch)["loss"].backward()
    return {name: parameter.grad for name, parameter in objective.named_parameters(remove_duplicate=False)}


def reference_loss(objective, batch, datasets):
    """The docstring's equations in float64, one sample and one region at a time, on maps of the network."""
    levels = sorted(objective.strides)
    weights = [2.0**-i for i in range(len(levels))]
    sums = {}
    with torch.no_grad():
        for b, name in enumerate(batch["dataset"]):
            maps = objective.neck(objective.encoder.stages(objective.stems[name](batch["image"][b][None])))
            semantic = batch["semantic"][b].numpy().astype(int)
            if "valid" in batch:
                semantic = np.where(batch["valid"][b].numpy(), semantic, -1)
            for level in levels:
                head = objective.heads[name][str(level)]
                z = np.tensordot(head.weight[:, :, 0, 0, 0].double().numpy(), maps[level][0].double().numpy(), 1)
                z += head.bias.double().numpy()[:, None, None, None]
                cells = [np.arange(s // 2, side, s) for s, side in zip(objective.strides[level], PATCH, strict=True)]
                sums.setdefault((name, level), []).append((z, semantic[np.ix_(*cells)]))
    loss = 0.0
    for (name, level), samples in sums.items():
        info = datasets[name]
        entropy, voxels, shared, size = 0.0, 0, np.zeros(len(info["regions"])), np.zeros(len(info["regions"]))
        for z, labels in samples:
            scored = labels >= 0
            voxels += scored.sum()
            truth = [np.isin(labels, region) for region in info["regions"]]
            if info["activation"] == "softmax":
                p = np.exp(z - z.max(0)) / np.exp(z - z.max(0)).sum(0)
                background = ~np.any(truth, axis=0)
                entropy -= sum(np.log(q[t & scored]).sum() for q, t in zip(p, [background, *truth], strict=True))
                p = p[1:]
            else:
                p = 1 / (1 + np.exp(-z))
                for q, t in zip(p, truth, strict=True):
                    entropy -= (np.log(q[t & scored]).sum() + np.log(1 - q[~t & scored]).sum()) / len(truth)
            shared += [q[t & scored].sum() for q, t in zip(p, truth, strict=True)]
            size += [q[scored].sum() + (t & scored).sum() for q, t in zip(p, truth, strict=True)]
        dice = ((2 * shared + 1e-5) / (size + 1e-5)).mean()
        share = len(samples) / len(batch["dataset"])
        loss += share * weights[levels.index(level)] / sum(weights) * (entropy / max(voxels, 1) + 1 - dice)
    return loss


@st.composite
def annotated(draw):
    """A dataset of 1 to 4 regions of the labels 0 to 5, overlapping if sigmoid."""
    if draw(st.booleans()):
        regions = draw(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=4))
        return sigmoid(regions)
    labels = draw(st.permutations(range(6)))
    cuts = sorted(draw(st.sets(st.integers(1, 5), min_size=1, max_size=4)))
    return softmax([labels[a:b] for a, b in zip([0, *cuts[:-1]], cuts, strict=True)])


@settings(max_examples=40, deadline=None)
@given(
    first=annotated(),
    second=annotated(),
    order=st.lists(st.sampled_from(["first", "second"]), min_size=1, max_size=4),
    deep=st.booleans(),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    with_valid=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_loss_is_that_of_the_equations(first, second, order, deep, ignored, with_valid, seed):
    datasets = {"first": first, "second": second}
    objective = build(datasets, MultiTalentConfig(deep_supervision=deep), init=seed)
    batch = batch_of(order, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    batch["semantic"] = torch.randint(0, 8, batch["semantic"].shape, generator=generator, dtype=torch.int16)
    batch["semantic"][torch.rand(batch["semantic"].shape, generator=generator) < ignored] = -1
    if not with_valid:
        del batch["valid"]
    with torch.no_grad():
        found = objective(batch)
    wanted = reference_loss(objective, batch, datasets)
    assert float(found["loss"]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert float(found["cross_entropy"] + found["dice_loss"]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    scored = (batch["semantic"] >= 0) & (batch["valid"] if with_valid else True)
    assert float(found["scored"]) == pytest.approx(float(scored.float().mean()))


DATASETS = {
    "ct": sigmoid([[1, 2], [2]]),
    "mr": softmax([[1], [3]]),
    "pet": sigmoid([[1], [1]], channels=2),
}


@pytest.mark.parametrize("present", [["ct"], ["mr", "mr"], ["mr", "ct"]])
def test_stems_and_heads_of_absent_datasets_have_a_gradient_of_exactly_zero(present):
    found = gradients(build(DATASETS), batch_of(present))
    for name, gradient in found.items():
        part, dataset, *_ = name.split(".")
        if part in ("stems", "heads"):
            assert gradient is not None, name
            assert bool(gradient.any()) == (dataset in present), name
        elif name.startswith("encoder.stem."):
            assert bool(gradient.any()) == ("ct" in present), name
        else:
            assert gradient.any(), name


def test_one_dataset_does_not_see_the_labels_and_heads_of_another():
    objective, batch = build(DATASETS), batch_of(["ct", "mr"])
    before = gradients(objective, batch)
    batch["semantic"][1] = batch["semantic"][1].flip(0)
    after = gradients(objective, batch)
    same = {name: torch.equal(before[name], after[name]) for name in before if name.startswith("heads.")}
    assert all(equal == (not name.startswith("heads.mr.")) for name, equal in same.items())


def test_the_same_voxels_may_be_a_class_here_and_background_there():
    """Contradicting datasets are learnt side by side: what is label 1 is the organ in one, no organ in the other."""
    batch = batch_of(["yes", "no"])
    batch["image"][1], batch["semantic"][:] = batch["image"][0], (batch["image"][0, 0] > 0).to(torch.int16)
    del batch["valid"]
    objective = build({"yes": sigmoid([[1]]), "no": sigmoid([[2], [0]])})
    objective.stems["no"].load_state_dict(objective.stems["yes"].state_dict())
    optimiser = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        objective(batch)["loss"].backward()
        optimiser.step()
    with torch.no_grad():
        h = torch.cat([objective.stems[name](batch["image"][b][None]) for b, name in enumerate(["yes", "no"])])
        finest = objective.neck(objective.encoder.stages(h))[0]
        yes, no = objective.heads["yes"]["0"](finest[:1])[0, 0] > 0, objective.heads["no"]["0"](finest[1:])[0] > 0
    truth = batch["semantic"][0] == 1
    for guess, wanted in ((yes, truth), (no[0], torch.zeros_like(truth)), (no[1], ~truth)):
        assert float((guess == wanted).float().mean()) > 0.9


def test_samples_of_different_channels_are_one_batch():
    objective = build(DATASETS)
    batch = batch_of(["ct", "pet", "mr", "pet"], channels=2)
    images = [image[: objective.channels[name]] for image, name in zip(batch["image"], batch["dataset"], strict=True)]
    batch["image"] = images
    assert float(objective(batch)["loss"].detach()) == pytest.approx(
        reference_loss(objective, batch, DATASETS), rel=1e-5
    )
    shuffled = [2, 1, 3, 0]
    other = {
        key: value[shuffled] if isinstance(value, torch.Tensor) else [value[b] for b in shuffled]
        for key, value in batch.items()
    }
    torch.testing.assert_close(gradients(objective, batch), gradients(objective, other))


def test_a_stem_sees_one_sample_at_a_time():  # which a norm over the batch could tell
    stem = tiny_parts().make_stem

    def batch_norm_stem(channels):
        layers = stem(channels)
        return torch.nn.Sequential(layers, torch.nn.BatchNorm3d(4))

    objective = build(DATASETS, make_stem=batch_norm_stem)
    batch, seen = batch_of(["ct", "mr", "ct"]), []
    with torch.no_grad():
        wanted = torch.cat([objective.stems[name](batch["image"][b][None]) for b, name in enumerate(batch["dataset"])])
        objective.encoder.stages.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        objective(batch)
    assert torch.equal(seen[0], wanted)


@pytest.mark.parametrize("kind", [sigmoid, softmax])
def test_what_the_loss_holds_does_not_grow_with_the_batch(kind):
    heads = DatasetHeads("many", kind([[label] for label in range(1, 31)]), {0: 1})
    logits_bytes = 30 * 8 * 12 * 16 * 4

    def peak(n_samples):
        maps = torch.zeros(n_samples, 1, *PATCH, requires_grad=True)
        labels = torch.zeros(n_samples, *PATCH, dtype=torch.int16)
        with Alive([maps, labels, *heads.parameters(), *heads.buffers()]) as alive:
            found = [heads({0: x}, {0: (1, 1, 1)}, t) for x, t in zip(maps.split(1), labels.split(1), strict=True)]
            sum(total.sum() for sums in found for total in sums).backward()
        return alive.peak / logits_bytes

    assert peak(1) < 5
    assert peak(4) < peak(1) + 0.2


class Alive(TorchDispatchMode):
    """Keeps the most bytes that were in tensors at once, but for those given."""

    def __init__(self, before):
        super().__init__()
        self.before, self.held, self.peak = {StorageWeakRef(t.untyped_storage()).cdata for t in before}, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_iter(out) if isinstance(t, torch.Tensor)):
            ref = StorageWeakRef(storage)
            if ref.cdata not in self.before:
                self.held.setdefault(ref.cdata, (ref, storage.nbytes()))
        self.held = {key: entry for key, entry in self.held.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(n_bytes for _, n_bytes in self.held.values()))
        return out


def test_given_parameters_are_also_those_of_the_backward_pass():
    objective, batch = build(DATASETS), batch_of(["ct", "mr"])
    wanted = gradients(objective, batch)["heads.ct.0.weight"]
    given_state = {name: p.detach().clone().requires_grad_() for name, p in objective.named_parameters()}
    with torch.no_grad():
        for p in objective.parameters():
            p.add_(1)
    loss = functional_call(objective, given_state, (batch,))["loss"]
    torch.testing.assert_close(torch.autograd.grad(loss, given_state["heads.ct.0.weight"])[0], wanted)


def test_a_dataset_of_one_sample_is_a_batch_of_one_dataset():
    datasets = {"only": softmax([[1], [2], [3]])}
    objective, batch = build(datasets), batch_of(["only"])
    found = gradients(objective, batch)
    assert all(gradient.any() for gradient in found.values())
    assert float(objective(batch)["loss"].detach()) == pytest.approx(
        reference_loss(objective, batch, datasets), rel=1e-5
    )


@pytest.mark.parametrize("kind", [sigmoid, softmax])
def test_thirty_classes_are_one_dataset(kind):  # the public code splits a dataset of more than 20 silently
    datasets = {"many": kind([[label] for label in range(1, 31)])}
    objective, batch = build(datasets), batch_of(["many", "many"])
    generator = torch.Generator().manual_seed(0)
    batch["semantic"] = torch.randint(0, 31, batch["semantic"].shape, generator=generator)
    assert list(objective.stems) == ["many"]
    assert objective.heads["many"]["0"].out_channels == 30 + (kind is softmax)
    assert float(objective(batch)["loss"].detach()) == pytest.approx(
        reference_loss(objective, batch, datasets), rel=1e-5
    )
    heads = {name: g for name, g in gradients(objective, batch).items() if name.startswith("heads.")}
    assert all(gradient.flatten(1).any(1).all() for name, gradient in heads.items() if name.endswith("weight"))


def test_invalid_and_ignored_voxels_are_the_same_and_have_no_say():
    objective, batch = build(DATASETS), batch_of(["ct", "mr"])
    hidden = torch.zeros(2, *PATCH, dtype=torch.bool)
    hidden[:, :, :6] = True
    by_label = {**batch, "semantic": batch["semantic"].masked_fill(hidden, -1)}
    by_valid = {**batch, "valid": batch["valid"] & ~hidden}
    torch.testing.assert_close(gradients(objective, by_label), gradients(objective, by_valid), rtol=0, atol=0)
    far_below = {**batch, "semantic": batch["semantic"].masked_fill(hidden, -7)}
    assert float(objective(far_below)["loss"].detach()) == float(objective(by_label)["loss"].detach())


def test_nothing_to_score_is_a_zero_loss_with_zero_gradient():
    objective, batch = build(DATASETS), batch_of(["ct", "mr"])
    batch["semantic"] = torch.full_like(batch["semantic"], -1)
    found = objective(batch)
    found["loss"].backward()
    assert float(found["loss"].detach()) == 0
    assert float(found["scored"]) == 0
    assert all((parameter.grad == 0).all() for parameter in objective.parameters())


def test_a_constant_patch_is_fine_and_nan_is_not_hidden():
    objective, batch = build(DATASETS), batch_of(["ct", "mr"])
    batch["image"][0] = 3.0
    assert objective(batch)["loss"].isfinite()
    batch["image"][0, 0, 1, 2, 3] = torch.nan
    assert objective(batch)["loss"].isnan()
    batch["semantic"][0] = -1
    assert objective(batch)["loss"].isnan()


def test_autocast_does_not_reach_the_loss():
    objective, batch = build(DATASETS), batch_of(["ct", "mr"])
    full = objective(batch)["loss"].detach()
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(batch)["loss"]
    assert half.dtype == torch.float32
    assert float(half.detach()) == pytest.approx(float(full), rel=0.02)


@dataclass(frozen=True)
class UnevenConfig(MultiTalentConfig):
    """Three samples of one dataset and one of another, with very different numbers of ignored voxels."""

    def build(self, parts: Parts) -> MultiTalent:
        absent = sigmoid([[1]], parts.in_channels)
        built = Uneven(
            parts.encoder,
            parts.make_neck(),
            parts.make_stem,
            {**parts.datasets, "absent": absent},
        )
        built.requires = built.requires | {"index"}
        return built


class Uneven(MultiTalent):
    def forward(self, batch):
        index = batch["index"].tolist()
        semantic = batch["semantic"].clone()
        for b, i in enumerate(index):
            semantic[b, : 3 * i] = -1
        return super().forward(
            {**batch, "semantic": semantic, "dataset": [("overlapping", "disjoint")[i == 1] for i in index]}
        )


def test_processes_with_other_datasets_and_numbers_of_voxels_train_as_one():
    (check,) = [c for c in check_objective(UnevenConfig(), patch_zyx=(12, 8, 8)) if c.name == "two_processes_equal_one"]
    check()


def test_the_encoders_own_stem_is_that_of_the_default_dataset():
    objective = build(DATASETS, MultiTalentConfig(default_stem="pet"))
    assert objective.encoder.stem is objective.stems["pet"]
    assert objective.encoder.in_channels == 2
    first = build(DATASETS)
    assert first.encoder.stem is first.stems["ct"]
    assert first.encoder.in_channels == 1
    names = [name for name, _ in objective.named_parameters()]
    assert len({id(parameter) for parameter in objective.parameters()}) == len(names)


def test_a_state_dict_has_no_tensor_under_two_names():  # safetensors refuses to write such
    objective = build(DATASETS)
    state = objective.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert {name.split(".")[0] for name in state} == {"encoder", "neck", "stems", "heads"}
    assert {name for name in state if name.startswith("heads.mr.")} == {
        f"heads.mr.{level}.{leaf}" for level in (0, 1) for leaf in ("weight", "bias")
    }
    for name, tensor in state.items():
        if name.startswith("encoder.stem."):
            assert torch.equal(tensor, state[name.replace("encoder.stem.", "stems.ct.")])
    other = build(DATASETS, init=1)
    other.load_state_dict(state)
    assert other.encoder.stem is other.stems["ct"]
    assert all(torch.equal(a, b) for a, b in zip(state.values(), other.state_dict().values(), strict=True))
    twin = copy.deepcopy(objective)
    assert twin.encoder.stem is twin.stems["ct"]


def test_weights_of_datasets_grow_with_the_root_of_their_size():  # roots 1, 2, 10
    assert dataset_weights({"a": 1, "b": 4, "c": 100}) == pytest.approx({"a": 1 / 13, "b": 2 / 13, "c": 10 / 13})
    assert dataset_weights({"only": 7}) == {"only": 1.0}


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 10**9), min_size=1, max_size=9))
def test_weights_of_datasets_sum_to_one(counts):
    weights = dataset_weights(counts)
    assert sum(weights.values()) == pytest.approx(1)
    assert sorted(counts, key=counts.__getitem__) == sorted(counts, key=weights.__getitem__)


@pytest.mark.parametrize(
    ("counts", "message"), [({}, "no dataset"), ({"a": 3, "b": 0}, "0 cases of dataset 'b'"), ({"a": -1}, "-1 cases")]
)
def test_datasets_without_cases_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        dataset_weights(counts)


@pytest.mark.parametrize("name", ["", "a.b", "keys", "pop", "training", "forward"])
def test_a_name_that_no_tensor_can_have_is_refused(name):
    with pytest.raises(ValueError, match=f"dataset: found {name!r}, wanted another name"):
        build({name: sigmoid([[1]])})


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"channels": 0}, "found channels 0, wanted a whole number of 1 or more"),
        ({"channels": 1.5}, "found channels 1.5"),
        ({"channels": True}, "found channels True"),
        ({"classes": [], "regions": []}, r"found classes \[\], wanted a list of names, at least one"),
        ({"classes": ["a", "a"]}, r"found classes \['a', 'a'\], wanted .* each once"),
        ({"classes": "ab"}, "found classes 'ab'"),
        ({"classes": ["a"]}, r"found regions \[\[1\], \[2\]\], wanted a list of labels for each of \['a'\]"),
        ({"regions": [1, 2]}, r"found regions \[1, 2\]"),
        ({"regions": [[1.0], [2]]}, r"class 'class 0': found labels \[1.0\]"),
        ({"activation": "relu"}, "found activation 'relu'"),
        ({"regions": [[1], []]}, r"class 'class 1': found labels \[\]"),
        ({"regions": [[1], [-1]]}, r"class 'class 1': found labels \[-1\]"),
        ({"regions": [[1], [2**15]]}, "wanted some of 0 to 32767"),
        ({"activation": "softmax", "regions": [[1, 4], [4, 2]]}, r"labels \[4\] in both 'class 0' and 'class 1'"),
    ],
)
def test_a_dataset_that_is_not_sound_is_refused(info, message):
    with pytest.raises(ValueError, match=f"dataset 'ct'.*{message}"):
        build({"ct": {**sigmoid([[1], [2]]), **info}})


def test_a_dataset_that_lacks_a_field_is_refused():
    info = sigmoid([[1]])
    del info["regions"], info["activation"]
    with pytest.raises(ValueError, match=r"dataset 'ct' lacks activation, regions: found .*'channels', 'classes'"):
        build({"ct": info})


def test_parts_that_do_not_suit_are_refused():
    with pytest.raises(ValueError, match="datasets: found none, wanted at least one with semantic labels"):
        build({})
    with pytest.raises(ValueError, match=r"default_stem: found 'us', wanted one of \['ct', 'mr', 'pet'\]"):
        build(DATASETS, MultiTalentConfig(default_stem="us"))
    with pytest.raises(ValueError, match=r"found \(8, 10, 8\) voxels"):
        build(DATASETS, patch_zyx=(8, 10, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": ["ct", "us"]}, r"dataset: found us, wanted some of \['ct', 'mr', 'pet'\]"),
        ({"dataset": ["ct"]}, "dataset: found 1 names for 2 images"),
        ({"dataset": ["ct", "pet"]}, r"image of 'pet': found shape \(1, 8, 12, 16\), wanted \(2, 8, 12, 16\)"),
        ({"image": []}, "dataset: found 2 names for 0 images"),
        ({"image": [torch.zeros(1, 8, 12, 16), torch.zeros(1, 8, 12, 12)]}, r"found shape \(1, 8, 12, 12\)"),
        ({"dataset": torch.zeros(2)}, r"dataset: found tensor\(\[0., 0.\]\), wanted a list with the name of every"),
        ({"dataset": "ct"}, "dataset: found 'ct', wanted a list"),
        ({"image": torch.zeros(2, 8, 12, 16)}, r"'ct': found shape \(8, 12, 16\), wanted four axes \(c, z, y, x\)"),
        ({"image": [torch.zeros(1, 1, 8, 12, 16)] * 2}, r"found shape \(1, 1, 8, 12, 16\), wanted four axes"),
        (
            {"image": torch.zeros(2, 1, 8, 12, 16, dtype=torch.int16)},
            "int16, wanted a tensor of a floating dtype",
        ),
        ({"image": np.zeros((2, 1, 8, 12, 16))}, "image of 'ct': found ndarray, wanted a tensor"),
        ({"semantic": [torch.zeros(8, 12, 16)] * 2}, r"semantic: found list, wanted a tensor \(2, 8, 12, 16\)"),
        ({"semantic": torch.zeros(2, 8, 12, 16, dtype=torch.uint8)}, "semantic: .* torch.uint8, wanted .* torch.int16"),
        ({"semantic": torch.zeros(2, 8, 12, 12, dtype=torch.int16)}, r"semantic: found \(2, 8, 12, 12\)"),
        ({"semantic": torch.zeros(2, 1, 8, 12, 16, dtype=torch.int16)}, r"semantic: found \(2, 1, 8, 12, 16\)"),
        ({"semantic": torch.zeros(2, 8, 12, 16)}, "semantic: .* torch.float32, wanted .* torch.int16"),
        ({"semantic": torch.zeros(2, 8, 12, 16, dtype=torch.bool)}, "semantic: .* torch.bool"),
        ({"valid": torch.ones(2, 8, 12, 16, dtype=torch.uint8)}, "valid: .* torch.uint8"),
        ({"seed": torch.zeros(3, dtype=torch.int64)}, r"seed: found \(3,\)"),
    ],
)
def test_a_batch_that_does_not_suit_is_refused(change, message):
    objective = build(DATASETS)
    with pytest.raises(ValueError, match=message):
        objective({**batch_of(["ct", "mr"]), **change})


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_labels_may_be_any_signed_integers(dtype):
    objective, batch = build(DATASETS), batch_of(["ct", "mr"])
    batch["semantic"][:, :3] = -1
    wanted = objective(batch)["loss"]
    assert torch.equal(objective({**batch, "semantic": batch["semantic"].to(dtype)})["loss"], wanted)
