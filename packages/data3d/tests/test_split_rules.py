"""Rules of division: sizes, patients, seeds, nesting, and the numbers of the paper."""

import hashlib
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.formats import FORMATS
from girih_data3d.paper_splits import PAPER_SPLITS, paper_split
from girih_data3d.split_rules import holdout_split, kfold_split, official_split, subset
from girih_data3d.splits import Cases, Fold, Split, members

IMAGE = (Path("image.nii.gz"),)


def cohort(sizes: list[int], *, parts: list[str | None] | None = None, objects: list[int] | None = None) -> d3.Dataset:
    """Return a dataset in which patient k has sizes[k] cases, of part parts[k], each with objects[k] objects."""
    sphere = d3.ObjectLabel(0, center_ras_mm=(0, 0, 0), diameter_mm=3)
    sources = [
        d3.CaseSource(
            f"{patient:05}_{scan}",
            IMAGE,
            patient_id=f"P{patient}",
            part=parts[patient] if parts else None,
            objects=(sphere,) * objects[patient] if objects else (),
        )
        for patient, size in enumerate(sizes)
        for scan in range(size)
    ]
    return d3.Dataset("cohort", ("lesion",), tuple(sources))


def counts(split: Split, fold: int = 0) -> tuple[int, ...]:
    return tuple(len(ids) for ids in split.parts(fold).values())


def patients(cases: Cases, ids: tuple[str, ...]) -> set[str]:
    chosen = set(ids)
    return {member.patient_id for member in members(cases) if member.case_id in chosen}


scans = st.lists(st.integers(1, 4), min_size=4, max_size=40)
"""Of each patient."""


def test_patients_are_taken_by_their_hashes() -> None:  # the recipe, written out: whoever knows it gets the same
    cases = cohort([1] * 10)
    order = sorted(range(10), key=lambda k: hashlib.sha256(f"7/test/P{k}".encode()).hexdigest())
    assert holdout_split(cases, test=0.3, seed=7).test == tuple(sorted(f"{k:05}_0" for k in order[:3]))


def test_a_fixed_draw() -> None:  # of any machine and any version
    split = holdout_split(cohort([1] * 8), test=0.25, val=0.25, seed=0)
    assert split.test == ("00001_0", "00007_0")
    assert split.folds[0].val == ("00003_0", "00006_0")


@given(
    st.lists(st.integers(1, 4), min_size=9, max_size=40),
    st.integers(0, 5),
    st.sampled_from([0, 0.1, 0.15, 0.3]),
    st.sampled_from([0, 0.2, 0.4]),
)
def test_holdout_keeps_patients_together_and_sizes(sizes: list[int], seed: int, test: float, val: float) -> None:
    cases = cohort(sizes)
    split = holdout_split(cases, test=test, val=val, seed=seed)
    split.check(cases)
    n, largest = len(cases.sources), 4
    assert sum(counts(split)) == n
    for found, wanted in ((len(split.test), test * n), (counts(split)[1], val * (n - len(split.test)))):
        assert (found > 0) == (wanted > 0)
        assert abs(found - wanted) <= largest / 2 + 1 or found <= largest


@given(scans, st.integers(0, 5))
def test_the_order_of_the_cases_does_not_count(sizes: list[int], seed: int) -> None:
    cases = cohort(sizes)
    shuffled = list(cases.sources)
    random.Random(seed).shuffle(shuffled)
    other = d3.Dataset(cases.name, cases.classes, tuple(shuffled))
    whole = Split("cohort", "all", 0, (Fold(tuple(s.case_id for s in cases.sources), ()),))
    assert subset(whole, cases, fraction=0.3, seed=seed) == subset(whole, other, fraction=0.3, seed=seed)
    assert kfold_split(cases, folds=3, seed=seed) == kfold_split(other, folds=3, seed=seed)


def test_seeds_differ() -> None:
    cases = cohort([1] * 40)
    assert len({holdout_split(cases, seed=seed).test for seed in range(20)}) == 20
    assert len({kfold_split(cases, seed=seed).folds for seed in range(20)}) == 20
    split = holdout_split(cases)
    assert len({subset(split, cases, fraction=0.25, seed=seed).folds for seed in range(20)}) == 20


def test_sizes_as_near_as_patients_allow() -> None:
    assert counts(holdout_split(cohort([3] * 6), test=5 / 18, val=0)) == (12, 0, 6)  # 5 wanted: 6 are nearer than 3
    assert counts(holdout_split(cohort([3] * 6), test=4 / 18, val=0)) == (15, 0, 3)  # 4 wanted
    for seed in range(10):  # whatever comes first, single scans fill up what is left
        assert counts(holdout_split(cohort([5, 4, 3, 2] + [1] * 16), test=0.3, val=0, seed=seed)) == (21, 0, 9)


def test_a_share_is_the_number_that_was_typed() -> None:
    assert 0.07 * 100 > 7  # as binary fractions have it
    assert counts(holdout_split(cohort([1] * 100), test=0.07, val=0)) == (93, 0, 7)
    assert counts(holdout_split(cohort([1] * 281), test=0.3, val=0)) == (196, 0, 85)  # ceil(84.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": 1.0}, "test is 1.0, wanted a share"),
        ({"val": -0.1}, "val is -0.1, wanted a share"),
        ({"test": float("nan")}, "test is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_holdout_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        holdout_split(cohort([1] * 5), **arguments)  # type: ignore[arg-type]


def test_too_few_patients() -> None:
    with pytest.raises(ValueError, match=r"test is 0\.2 of 10 cases, but 1 patients have them"):
        holdout_split(cohort([10]))
    for cases in (cohort([1, 1]), cohort([])):
        with pytest.raises(ValueError, match=r"folds\[0\]: train is empty"):
            holdout_split(cases)
    assert counts(holdout_split(cohort([5, 5]), test=0, val=0.9)) == (
        5,
        5,
        0,
    )  # 10 are nearer to 9, but somebody has to train
    with pytest.raises(ValueError, match="folds is 5, but there are 4 patients"):
        kfold_split(cohort([3] * 4))
    with pytest.raises(ValueError, match="folds is 1, wanted 2 or more"):
        kfold_split(cohort([1] * 4), folds=1)


@given(scans, st.integers(2, 4), st.integers(0, 3))
def test_folds_validate_every_case_once(sizes: list[int], folds: int, seed: int) -> None:
    cases = cohort(sizes)
    split = kfold_split(cases, folds=folds, seed=seed)
    split.check(cases)
    validated = [case_id for fold in split.folds for case_id in fold.val]
    everything = sorted(source.case_id for source in cases.sources)
    assert sorted(validated) == everything
    assert all(sorted((*fold.train, *fold.val)) == everything for fold in split.folds)
    validate = [len(fold.val) for fold in split.folds]
    assert max(validate) - min(validate) <= 4


def test_folds_of_single_cases_are_even() -> None:
    split = kfold_split(cohort([1] * 23), folds=5)
    assert sorted(len(fold.val) for fold in split.folds) == [4, 4, 5, 5, 5]
    with_test = kfold_split(cohort([1] * 30), folds=5, test=0.2)
    assert len(with_test.test) == 6
    assert not set(with_test.test) & {case_id for fold in with_test.folds for case_id in (*fold.train, *fold.val)}


def test_stratified_by_having_objects() -> None:
    cases = cohort([1] * 100, objects=[k % 5 == 0 for k in range(100)])  # 20 with objects
    with_objects = {member.case_id for member in members(cases) if member.objects}
    for seed in range(5):
        split = holdout_split(cases, test=0.3, val=0.2, seed=seed, stratify=True)
        assert counts(split) == (56, 14, 30)
        assert len(with_objects & set(split.test)) == 6
        folds = kfold_split(cases, seed=seed, stratify=True)
        assert all(len(with_objects & set(fold.val)) == 4 and len(fold.val) == 20 for fold in folds.folds)
        part = subset(folds, cases, fraction=0.25, seed=seed, stratify=True)
        assert all(len(with_objects & set(fold.train)) == 4 and len(fold.train) == 20 for fold in part.folds)
    assert "stratified" in split.rule


def test_stratifying_needs_the_objects() -> None:
    unlabelled = d3.Dataset("u", (), (d3.CaseSource("a", IMAGE), d3.CaseSource("b", IMAGE)))
    with pytest.raises(ValueError, match="how many objects case 'a' holds is not known, for it is unlabelled"):
        holdout_split(unlabelled, stratify=True)
    masks = d3.Dataset("m", ("x",), (d3.CaseSource("a", IMAGE, instances=IMAGE),))
    with pytest.raises(ValueError, match="counted when it is prepared"):
        kfold_split(masks, stratify=True)


@settings(max_examples=40)
@given(scans, st.integers(0, 5), st.booleans())
def test_larger_subsets_contain_smaller_ones(sizes: list[int], seed: int, stratify: bool) -> None:
    cases = cohort(sizes)
    split = kfold_split(cases, folds=3, seed=seed)
    fractions = (0.05, 0.1, 0.25, 0.5, 1)
    found = [subset(split, cases, fraction=f, seed=seed, stratify=stratify) for f in fractions]
    for number, whole in enumerate(split.folds):
        trained = [set(part.folds[number].train) for part in found]
        assert all(small <= large for small, large in pairwise(trained))
        assert trained[0]
        assert trained[-1] == set(whole.train)
        for fraction, ids in zip(fractions, trained, strict=True):
            left = set(whole.train) - ids
            assert not patients(cases, tuple(ids)) & patients(cases, tuple(left))
            assert abs(len(ids) - fraction * len(whole.train)) <= 4
        assert all(part.folds[number].val == whole.val for part in found)


def test_a_patient_that_joins_moves_nobody_out_of_a_subset() -> None:
    small, large = (cohort([1] * n) for n in (40, 44))
    trained = []
    for cases in (small, large):
        whole = Split("cohort", "all", 0, (Fold(tuple(s.case_id for s in cases.sources), ()),))
        trained.append(set(subset(whole, cases, fraction=0.25, seed=1).folds[0].train))
    assert len(trained[1]) == 11
    assert len(trained[0] - trained[1]) <= 4  # only by those that came


def test_subset_out_of_range() -> None:
    cases = cohort([1] * 10)
    for fraction in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="wanted above 0, at most 1"):
            subset(holdout_split(cases), cases, fraction=fraction)
    with pytest.raises(ValueError, match="names case"):
        subset(holdout_split(cases), cohort([1] * 3), fraction=0.5)


def test_official_parts() -> None:
    cases = cohort([1, 2, 1, 1], parts=["train", "val", "test", "train"])
    split = official_split(cases)
    assert split.folds == (Fold(("00000_0", "00003_0"), ("00001_0", "00001_1")),)
    assert split.test == ("00002_0",)
    without_val = official_split(cohort([1] * 12, parts=["train"] * 10 + ["test"] * 2), val=0.2, seed=4)
    assert counts(without_val) == (8, 2, 2)
    assert counts(official_split(cohort([1] * 4, parts=["train", "train", "val", "val"]))) == (2, 2, 0)
    assert counts(official_split(cohort([1] * 4, parts=["train", "train", "test", "external"]), val=0.5)) == (1, 1, 1)
    assert counts(official_split(cohort([1] * 4, parts=["train"] * 4), val=0)) == (4, 0, 0)


def test_official_folds_are_tested_in_turn() -> None:
    names = [f"subset{k}" for k in (10, 0, 2, 1)]  # in natural order 0, 1, 2, 10
    split = official_split(cohort([1, 2, 3, 4], parts=list(names)))
    assert [counts(split, k) for k in range(4)] == [(4, 4, 2), (3, 3, 4), (6, 1, 3), (7, 2, 1)]
    assert split.test == ()
    tested = sorted(case_id for fold in split.folds for case_id in fold.test)
    assert tested == [member.case_id for member in members(cohort([1, 2, 3, 4]))]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["train", None], "case '00001_0' says no official part"),
        (["train", "extern"], r"official parts are \['extern', 'train'\], wanted 'train' with 'val' or 'test'"),
        (["a", "b"], "wanted 'train' with"),
        (["val", "test"], "wanted 'train' with"),
        (["treino", "validacao", "teste"], r"parts are \['teste', 'treino', 'validacao'\], wanted .* such as subset0"),
        (["fold0", "fold1", "part2"], "three and more folds that one word and a number name"),
        (["fold0", "fold1", "fold01"], "three and more folds"),
        (["fold0", "fold1", "rest"], "three and more folds"),
    ],
)
def test_official_parts_that_are_none(parts: list[str | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        official_split(cohort([1] * len(parts), parts=parts))


def test_official_parts_in_other_spellings() -> None:
    parts: list[str | None] = ["Training", "TRAIN", "validation", "Testing"]
    assert counts(official_split(cohort([1] * 4, parts=parts))) == (2, 1, 1)


@pytest.mark.parametrize("given", [{"val": 0.2}, {"seed": 0}, {"stratify": True}])
def test_what_official_parts_leave_no_use_for(given: dict[str, Any]) -> None:
    (name,) = given
    for parts in (["train", "val", "test"], ["subset0", "subset1", "subset2"]):
        with pytest.raises(ValueError, match=f"{name} is given, but the official parts of dataset 'cohort'"):
            official_split(cohort([1] * 3, parts=list(parts)), **given)
    cases = cohort([1] * 9, parts=["train"] * 8 + ["test"], objects=[0, 1] * 4 + [0])
    assert counts(official_split(cases, **given)) == (6, 2, 1)


def test_an_official_split_with_a_patient_in_two_parts() -> None:
    sources = tuple(d3.CaseSource(part, IMAGE, patient_id="one", part=part) for part in ("train", "test"))
    with pytest.raises(ValueError, match="patient 'one' is in train"):
        official_split(d3.Dataset("d", (), sources), val=0)


SUBSETS = [f"subset{k}" for k in range(10) for _ in range(89 if k < 8 else 88)]
PUBLISHED = {
    "msd-pancreas": cohort([1] * 281, parts=["train"] * 281),
    "ribfrac": cohort([1] * 500, parts=["train"] * 420 + ["val"] * 80),
    "kits21": cohort([1] * 300),
    "lidc-idri": cohort([2] * 8 + [1] * 1002),  # 1018 scans of 1010 patients
    "duke-breast": cohort([1] * 911),
    "luna16": cohort([1] * 888, parts=list(SUBSETS)),
    "pn9": cohort([1] * 8798, parts=["train"] * 6037 + ["val"] * 670 + ["test"] * 2091),
    "cta-a": cohort([1] * 1338, parts=["train"] * 1186 + ["test"] * 152),
}


@pytest.mark.parametrize("name", PAPER_SPLITS)
def test_published_sizes(name: str) -> None:
    rule = PAPER_SPLITS[name]
    for seed in (0, 1):
        split = paper_split(name, PUBLISHED[name], seed=seed)
        assert counts(split, rule.fold) == rule.sizes
        split.check(PUBLISHED[name])
        assert name in split.rule


def test_formats_state_the_same_sizes() -> None:
    for name, rule in PAPER_SPLITS.items():
        stated = FORMATS[name].counts
        assert stated is not None
        assert tuple(stated.parts[part] for part in ("train", "val", "test")) == rule.sizes
        assert stated.images == sum(rule.sizes)


def test_other_shares_do_not_give_the_published_sizes() -> None:
    assert len(holdout_split(PUBLISHED["lidc-idri"], test=0.15).test) == 153  # published: 155
    assert len(holdout_split(cohort([1] * 922), test=0.3).test) == 277  # all patients of Duke; published: 274
    assert [k for k in range(10) if counts(official_split(PUBLISHED["luna16"]), k) == (711, 88, 89)] == [7]


def test_unlabelled_cases_are_not_in_the_papers_splits() -> None:
    hidden = tuple(d3.CaseSource(f"x{k}", IMAGE, part="test") for k in range(5))
    cases = PUBLISHED["ribfrac"]
    split = paper_split("ribfrac", d3.Dataset("ribfrac", ("x",), cases.sources + hidden))
    assert counts(split) == (336, 84, 80)
    with pytest.raises(ValueError, match="no labelled case of the official part 'val'; it has the parts"):
        paper_split("ribfrac", d3.Dataset("ribfrac", ("x",), cases.sources[:420] + hidden))
    with pytest.raises(ValueError, match="no labelled case of the official part 'train'"):
        paper_split("kits21", d3.Dataset("kits21", ("x",), hidden))
    with pytest.raises(ValueError, match="no split of 'brats' in the paper, known are msd-pancreas"):
        paper_split("brats", cases)
    luna = d3.Dataset("luna16", ("x",), (*PUBLISHED["luna16"].sources, *hidden[:1], d3.CaseSource("nameless", IMAGE)))
    assert counts(paper_split("luna16", luna), 7) == (711, 88, 89)  # cases without labels need no part either
