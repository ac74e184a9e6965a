"""Rules that divide a dataset by patient: the official parts, a held-out share, k folds, nested subsets.

What a rule draws is a function of the seed and of the ids alone, on every machine and in every order of the cases: the
patients are sorted by the SHA-256 of "<seed>/<purpose>/<patient id>" in UTF-8, and taken from the front. A patient's
place does not change when others are added.
"""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate

from girih_data3d.resampling import Number
from girih_data3d.splits import LARGEST_SEED, Cases, Fold, Member, Split, members

FOLD = re.compile(r"(.*?)([0-9]{1,9})")
"""A fold's name: one word, a number."""


def holdout_split(
    cases: Cases, *, test: Number = 0.2, val: Number = 0.2, seed: int = 0, stratify: bool = False
) -> Split:
    """Hold out a share of the cases as test set, and a share of the others for validation.

    A share of n cases is ceil(share * n), as in scikit-learn's train_test_split; where patients have several cases,
    about as many as whole patients make, and more than none.

    Args:
        cases: a prepared dataset, or one still to prepare.
        test: share of all cases, in [0, 1).
        val: share of the cases that are left, in [0, 1).
        seed: 0 or more.
        stratify: give the parts equal shares of the patients with and without objects.

    Raises:
        ValueError: a share or seed out of range, too few patients, or nobody knows which cases hold objects.
    """
    return divide(cases.name, members(cases), test=test, val=val, seed=seed, stratify=stratify)


def kfold_split(cases: Cases, *, folds: int = 5, test: Number = 0.0, seed: int = 0, stratify: bool = False) -> Split:
    """Divide the cases, without a share `test` held out first, into folds; each validates the training on the others.

    The folds' sizes differ by at most 1 where every patient has one case; see `holdout_split` for the arguments.

    Raises:
        ValueError: fewer than 2 folds or more than patients, or as `holdout_split` raises.
    """
    if folds < 2:
        raise ValueError(f"folds is {folds}, wanted 2 or more")
    tested, rest = _divided(members(cases), "test", test, seed, stratify)
    parts: list[list[Member]] = [[] for _ in range(folds)]
    for stratum in _strata(rest, stratify):
        own = [0] * folds
        groups = _by_patient(stratum)
        for patient in sorted(_shuffled(groups, seed, "folds"), key=lambda patient: -len(groups[patient])):
            number = min(range(folds), key=lambda k: (own[k], len(parts[k])))
            own[number] += len(groups[patient])
            parts[number] += groups[patient]
    if not all(parts):
        raise ValueError(f"folds is {folds}, but there are {len(_by_patient(rest))} patients")
    made = tuple(Fold(_ids(m for other in parts if other is not part for m in other), _ids(part)) for part in parts)
    return Split(cases.name, f"kfold: {folds} folds, test {test:g}{_said(stratify)}", seed, made, _ids(tested))


def official_split(
    cases: Cases, *, val: Number | None = None, seed: int | None = None, stratify: bool = False
) -> Split:
    """Divide as the dataset's authors do: by its parts "train", "val" and "test", or by its folds.

    "training", "valid", "validation" and "testing" are these parts too, in upper and lower case. Cases of parts of
    further names, such as "external", are left out where there is "train" with "val" or "test". Parts that are three or
    more and called by one word and a number, such as subset0 to subset9, are folds: fold k tests part k, validates with
    the next one and trains on the others, as is usual with LUNA16.

    Args:
        cases: a prepared dataset, or one still to prepare.
        val: share of "train" that validates where no part does, 0: nothing; default 0.2.
        seed: of that draw; default 0.
        stratify: of that draw, see `holdout_split`.

    Raises:
        ValueError: a case that says no part, other names of parts, a patient in two of them, `val`, `seed` or
            `stratify` though nothing is drawn, or as `holdout_split`.
    """
    found = members(cases)
    given = {"val": val is not None, "seed": seed is not None, "stratify": stratify}
    unused = next((name for name, said in given.items() if said), None)
    if unused is not None and not draws_val(found):
        raise ValueError(f"{unused} is given, but the official parts of dataset {cases.name!r} leave nothing to draw")
    split = divide_officially(cases.name, found, val=0.2 if val is None else val, seed=seed or 0, stratify=stratify)
    split.check(cases)
    return split


def subset(split: Split, cases: Cases, *, fraction: Number, seed: int = 0, stratify: bool = False) -> Split:
    """Return a split that trains on a fraction of the cases; validation and test stay as they are.

    For one seed a larger fraction contains the smaller ones. The number of cases is the nearest to fraction * n that
    the first so many patients have, and at least one patient's.

    Args:
        split: the whole one.
        cases: the dataset that it divides.
        fraction: in (0, 1], such as 0.05, 0.1 and 0.25.
        seed: 0 or more; another one draws other patients.
        stratify: keep the share of patients with objects.

    Raises:
        ValueError: a fraction or seed out of range, or what `Split.check` refuses.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}, wanted above 0, at most 1")
    split.check(cases)
    known = {member.case_id: member for member in members(cases)}
    folds = []
    for fold in split.folds:
        kept: list[Member] = []
        for stratum in _strata([known[case_id] for case_id in fold.train], stratify):
            groups = _by_patient(stratum)
            order = _shuffled(groups, seed, "subset")
            ends = [0, *accumulate(len(groups[patient]) for patient in order)]
            wanted = _exact(fraction) * len(stratum)
            nearest = min(range(len(ends)), key=lambda k: abs(ends[k] - wanted))
            for patient in order[: nearest if kept else max(1, nearest)]:
                kept += groups[patient]
        folds.append(replace(fold, train=_ids(kept)))
    rule = f"{split.rule}; {fraction:g} of train{_said(stratify)} by seed {seed}"
    return replace(split, rule=rule, folds=tuple(folds))


def divide(
    dataset: str, found: Sequence[Member], *, test: Number, val: Number, seed: int, stratify: bool = False
) -> Split:
    """Divide some cases of a dataset as `holdout_split` does."""
    tested, rest = _divided(found, "test", test, seed, stratify)
    validated, trained = _divided(rest, "val", val, seed, stratify)
    rule = f"holdout: test {test:g}, val {val:g} of the rest{_said(stratify)}"
    return Split(dataset, rule, seed, (Fold(_ids(trained), _ids(validated)),), _ids(tested))


def divide_officially(
    dataset: str, found: Sequence[Member], *, val: Number = 0.2, seed: int = 0, stratify: bool = False
) -> Split:
    """Divide some cases of a dataset as `official_split` does."""
    parts = _official_parts(dataset, found)
    if "train" in parts and (len(parts) == 1 or {"val", "test"} & set(parts)):
        if "val" in parts:
            fold, share = Fold(_ids(parts["train"]), _ids(parts["val"])), ""
        else:
            validated, trained = _divided(parts["train"], "val", val, seed, stratify)
            fold, share = Fold(_ids(trained), _ids(validated)), f"; val {val:g} of train{_said(stratify)}"
        return Split(dataset, f"official parts{share}", seed, (fold,), _ids(parts.get("test", ())))
    matches = [match for match in map(FOLD.fullmatch, parts) if match]
    numbers = {match[0]: int(match[2]) for match in matches}
    if len(parts) < 3 or len({match[1] for match in matches}) > 1 or len(set(numbers.values())) < len(parts):
        raise ValueError(
            f"dataset {dataset!r}: its official parts are {sorted(parts)}, wanted 'train' with 'val' or 'test', or "
            "three and more folds that one word and a number name, such as subset0"
        )
    names = sorted(parts, key=numbers.__getitem__)
    return Split(
        dataset,
        f"official folds: {len(names)}, each tested in turn, the next one validates",
        seed,
        tuple(_tested_in_turn(parts, names, k) for k in range(len(names))),
    )


def draws_val(found: Iterable[Member]) -> bool:
    """Return whether the official parts leave it open who validates."""
    parts = {member.part for member in found}
    return "train" in parts and "val" not in parts


def _divided(
    found: Sequence[Member], part: str, share: Number, seed: int, stratify: bool
) -> tuple[list[Member], list[Member]]:
    """Return a share of the cases, and the others."""
    if not 0 <= share < 1:
        raise ValueError(f"{part} is {share}, wanted a share of the cases, 0 or more and below 1")
    wanted = math.ceil(_exact(share) * len(found))
    taken: list[Member] = []
    strata = _strata(found, stratify)
    for number, stratum in enumerate(strata):
        own = wanted - len(taken) if number == len(strata) - 1 else round(_exact(share) * len(stratum))
        groups = _by_patient(stratum)
        chosen = _filled({patient: len(groups[patient]) for patient in _shuffled(groups, seed, part)}, own)
        taken += [member for patient in chosen for member in groups[patient]]
    if wanted and not taken:
        raise ValueError(f"{part} is {share} of {len(found)} cases, but {len(_by_patient(found))} patients have them")
    patient_ids = {member.patient_id for member in taken}
    return taken, [member for member in found if member.patient_id not in patient_ids]


def _filled(sizes: Mapping[str, int], wanted: int) -> list[str]:
    """Return patients, the first that fit, with about `wanted` cases, more than none; never all patients.

    Exact where the patients left over at the end have one case each.
    """
    chosen, left, room = [], [], wanted
    for patient, size in sizes.items():
        if size <= room:
            chosen.append(patient)
            room -= size
        else:
            left.append(patient)
    if len(left) > 1 and room > 0:
        smallest = min(left, key=sizes.__getitem__)
        if not chosen or sizes[smallest] - room < room:
            chosen.append(smallest)
    return chosen


def _strata(found: Sequence[Member], stratify: bool) -> list[list[Member]]:
    """Return the cases of patients with objects and those of the others; all in one list if not to `stratify`."""
    if not stratify:
        return [list(found)]
    unknown = next((member for member in found if member.objects is None), None)
    if unknown is not None:
        reason = "they are counted when it is prepared" if unknown.annotated else "it is unlabelled"
        raise ValueError(f"stratify: how many objects case {unknown.case_id!r} holds is not known, for {reason}")
    positive = {member.patient_id for member in found if member.objects}
    sides = ([m for m in found if (m.patient_id in positive) is with_objects] for with_objects in (True, False))
    return [side for side in sides if side] or [[]]


def _by_patient(found: Iterable[Member]) -> dict[str, list[Member]]:
    groups: dict[str, list[Member]] = defaultdict(list)
    for member in found:
        groups[member.patient_id].append(member)
    return groups


def _shuffled(patients: Iterable[str], seed: int, purpose: str) -> list[str]:
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed is {seed}, wanted 0 to {LARGEST_SEED}")
    return sorted(
        patients,
        key=lambda patient: hashlib.sha256(f"{seed}/{purpose}/{patient}".encode(errors="surrogatepass")).digest(),
    )


def _official_parts(dataset: str, found: Sequence[Member]) -> dict[str, list[Member]]:
    parts: dict[str, list[Member]] = defaultdict(list)
    for member in found:
        if member.part is None:
            raise ValueError(f"dataset {dataset!r}: case {member.case_id!r} says no official part; choose another rule")
        parts[member.part].append(member)
    return parts


def _tested_in_turn(parts: Mapping[str, list[Member]], names: Sequence[str], k: int) -> Fold:
    validates = names[(k + 1) % len(names)]
    trains = (m for name in names if name not in (names[k], validates) for m in parts[name])
    return Fold(_ids(trains), _ids(parts[validates]), _ids(parts[names[k]]))


def _ids(found: Iterable[Member]) -> tuple[str, ...]:
    return tuple(sorted(member.case_id for member in found))


def _exact(share: Number) -> Fraction:
    """Return the number that was typed: 0.1 is one tenth, not the binary fraction next to it."""
    return Fraction(repr(float(share)))


def _said(stratify: bool) -> str:
    return ", stratified by having objects" if stratify else ""
