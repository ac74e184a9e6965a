"""LIDC-in-CT: a detection benchmark of real nodule shapes in real lungs, made from the samples and a seed.

Consensus nodules of LIDC-IDRI are blended into the lungs of three thoracic CTs, among decoys (thickened vessels,
pleural plaques) that the same operator made and nobody labelled. Nodules are split by LIDC patient. One CT is the test
CT (fold 0: lung1, 1: lung2, 2: thorax_cta); training and pre-training see the two others only.

A case's patient is its CT, so intervals that are bootstrapped over patients say how results vary over backgrounds; a
fold's test set has one. The real lesions of lung1 and lung2 are instances that the manifest lists under `ignore`: they
are neither trained on nor scored.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from girih.atomic import write_json
from girih.samples.backgrounds import Background, read_background
from girih.samples.blend import empty_scene
from girih.samples.compose import insert_decoys, insert_nodules
from girih.samples.fetch import Progress
from girih.samples.lidc import Nodule, consensus_nodules
from girih.samples.sample_set import SampleSet
from girih_data3d import write_nifti

BACKGROUNDS = ("lung1", "lung2", "thorax_cta")
"""Fold k tests on the k-th."""
TEST_SHARE = 0.3
"""Of the LIDC patients."""
SOLID_FROM = 4.0
"""Mean texture rating from which a nodule is solid (4 is solid/mixed, 5 solid)."""
CLASSES = {"nodule": ("nodule",), "texture": ("solid", "subsolid")}
_SCHEMA = 1
_SPLITS = ("unlabelled", "train", "test")


class LidcInCt(NamedTuple):
    """The three dataset folders, each with its dataset.json."""

    unlabelled: Path
    train: Path
    test: Path


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the content; kept as `recipe.json`."""

    schema: int
    fold: int
    seed: int
    n_train: int
    n_test: int
    n_unlabelled: int
    nodules_per_volume: int
    spacing_mm: float
    classes: str


def write_lidc_in_ct(
    samples: SampleSet,
    out: Path,
    *,
    fold: int = 0,
    seed: int = 0,
    n_train: int = 6,
    n_test: int = 4,
    n_unlabelled: int = 6,
    nodules_per_volume: int = 10,
    spacing_mm: float = 2.0,
    classes: Literal["nodule", "texture"] = "nodule",
    on_progress: Progress | None = None,
) -> LidcInCt:
    """Write the benchmark as NIfTI files: `out/unlabelled`, `out/train`, `out/test`, each with a dataset.json.

    The same arguments give the same bytes. Every case is written on its own and `dataset.json` last, so a call that was
    killed goes on where it stopped and a finished folder is recognised at once. Beside the volumes lies
    `provenance/<case_id>.json`: of each nodule the LIDC scan, patient, annotations and ratings, its position in RAS mm
    and its diameter; of each decoy the kind and position.

    Args:
        samples: from `fetch()`.
        out: folder to fill; it is empty, absent, or of an earlier call with the same arguments.
        fold: which CT is the test CT, 0 to 2.
        seed: splits the LIDC patients and places the objects.
        n_train: labelled volumes, by turns in the two training CTs.
        n_test: labelled volumes in the test CT, with nodules of test patients.
        n_unlabelled: unlabelled volumes with nodules of training patients, beside the two training CTs as they are.
        nodules_per_volume: as many decoys are inserted too.
        spacing_mm: size of the cubic voxels.
        classes: "nodule" for one class, "texture" for solid and subsolid.
        on_progress: called after every case.

    Raises:
        ValueError: an argument out of range, or `out` holds something else.
    """
    recipe = Recipe(_SCHEMA, fold, seed, n_train, n_test, n_unlabelled, nodules_per_volume, float(spacing_mm), classes)
    _check(recipe)
    folders = LidcInCt(*(out / split for split in _SPLITS))
    _claim(out, recipe)
    if all((folder / "dataset.json").is_file() for folder in folders):
        return folders
    train_pool, test_pool = split_by_patient(consensus_nodules(samples), seed)
    cases = _cases(recipe)
    backgrounds: dict[str, Background] = {}
    for done, case in enumerate(cases, start=1):
        record = out / case.split / "provenance" / f"{case.case_id}.json"
        if not record.is_file():
            if case.background not in backgrounds:
                backgrounds[case.background] = read_background(samples.volume(case.background), spacing_mm)
            pool = test_pool if case.split == "test" else train_pool
            _write_case(case, recipe, backgrounds[case.background], pool, out / case.split)
        if on_progress is not None:
            on_progress(case.case_id, done, len(cases))
    for split, folder in zip(_SPLITS, folders, strict=True):
        _write_manifest(folder, split, [case for case in cases if case.split == split], recipe)
    return folders


def split_by_patient(nodules: Sequence[Nodule], seed: int) -> tuple[list[Nodule], list[Nodule]]:
    """Return the nodules of training patients and those of test patients (30 % of the patients, by `seed`)."""
    patients = sorted({nodule.patient_id for nodule in nodules})
    order = np.random.default_rng([seed, 0]).permutation(len(patients))
    test = {patients[k] for k in order[: round(TEST_SHARE * len(patients))]}
    return (
        [nodule for nodule in nodules if nodule.patient_id not in test],
        [nodule for nodule in nodules if nodule.patient_id in test],
    )


@dataclass(frozen=True)
class _Case:
    case_id: str
    split: str
    background: str
    number: int | None
    """Which of its split's volumes with nodules; None for a CT as it is."""


def _cases(recipe: Recipe) -> list[_Case]:
    test = BACKGROUNDS[recipe.fold]
    train = [name for name in BACKGROUNDS if name != test]
    cases = [_Case(f"{name}-real", "unlabelled", name, None) for name in train]
    for split, count, names in (
        ("unlabelled", recipe.n_unlabelled, train),
        ("train", recipe.n_train, train),
        ("test", recipe.n_test, [test]),
    ):
        for number in range(count):
            name = names[number % len(names)]
            cases.append(_Case(f"{name}-{split}-{number:03d}", split, name, number))
    return cases


def _write_case(case: _Case, recipe: Recipe, background: Background, pool: Sequence[Nodule], folder: Path) -> None:
    scene = empty_scene(background)
    placed: list[tuple[Nodule, dict[str, Any]]] = []
    decoys: list[dict[str, Any]] = []
    if case.number is not None:
        rng = np.random.default_rng([recipe.seed, 1 + recipe.fold, _SPLITS.index(case.split), case.number])
        placed = insert_nodules(scene, _candidates(case, recipe, pool), recipe.nodules_per_volume, rng)
        decoys = insert_decoys(scene, pool, recipe.nodules_per_volume, rng)
    for name in ("images", "provenance") if case.split == "unlabelled" else ("images", "instances", "provenance"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    hu = np.rint(scene.hu).astype(np.int16)
    write_nifti(hu, folder / "images" / f"{case.case_id}.nii.gz", affine=background.affine)
    nodules = [row for _, row in placed]
    lesions: list[int] = []
    if case.split != "unlabelled":
        for lesion in range(1, int(background.lesions.max()) + 1):
            lesions.append(len(nodules) + lesion)
            scene.instances[background.lesions == lesion] = lesions[-1]
        write_nifti(scene.instances, folder / "instances" / f"{case.case_id}.nii.gz", affine=background.affine)
    names = CLASSES[recipe.classes]
    kinds = [len(names) - 1 if nodule.texture < SOLID_FROM else 0 for nodule, _ in placed] + [0] * len(lesions)
    provenance = {
        "schema": _SCHEMA,
        "case_id": case.case_id,
        "background": case.background,
        "instance_classes": {str(label): kind for label, kind in enumerate(kinds, start=1)},
        "lesions": lesions,
        "nodules": nodules,
        "decoys": decoys,
    }
    write_json(folder / "provenance" / f"{case.case_id}.json", provenance)


def _candidates(case: _Case, recipe: Recipe, pool: Sequence[Nodule]) -> list[Nodule]:
    """Return the nodules of one case, and after them spares: a split's cases take turns in a shuffled pool."""
    order = np.random.default_rng([recipe.seed, 1 + recipe.fold, _SPLITS.index(case.split)]).permutation(len(pool))
    first = (case.number or 0) * recipe.nodules_per_volume
    return [pool[k] for k in np.roll(order, -first)]


def _write_manifest(folder: Path, split: str, cases: Sequence[_Case], recipe: Recipe) -> None:
    rows = []
    for case in cases:
        row: dict[str, Any] = {
            "case_id": case.case_id,
            "patient_id": case.background,
            "images": [f"images/{case.case_id}.nii.gz"],
        }
        if split != "unlabelled":
            provenance = json.loads((folder / "provenance" / f"{case.case_id}.json").read_text())
            row["instances"] = f"instances/{case.case_id}.nii.gz"
            row["instance_classes"] = provenance["instance_classes"]
            row["ignore"] = provenance["lesions"]
        rows.append(row)
    manifest = {
        "schema": 1,
        "name": f"lidc-in-ct-{split}",
        "classes": list(CLASSES[recipe.classes]),
        "modality": "CT",
        "cases": rows,
    }
    write_json(folder / "dataset.json", manifest)


def _check(recipe: Recipe) -> None:
    ranges = {
        "fold": (0, len(BACKGROUNDS) - 1),
        "seed": (0, 2**63 - 1),
        "n_train": (1, 999),
        "n_test": (1, 999),
        "n_unlabelled": (0, 999),
        "nodules_per_volume": (1, 50),
        "spacing_mm": (0.5, 3.0),
    }
    for name, (low, high) in ranges.items():
        value = getattr(recipe, name)
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}, wanted {low} to {high}")
    if recipe.classes not in CLASSES:
        raise ValueError(f"classes is {recipe.classes!r}, wanted one of {sorted(CLASSES)}")


def _claim(out: Path, recipe: Recipe) -> None:
    """Leave the recipe in `out`, or make sure that the one there is the same."""
    place = out / "recipe.json"
    wanted = asdict(recipe)
    if place.is_file():
        found = json.loads(place.read_text())
        for name in wanted | found:
            if found.get(name) != wanted.get(name):
                raise ValueError(
                    f"{out}: made with {name} = {found.get(name)}, wanted {wanted.get(name)}; "
                    "choose another folder or delete this one"
                )
    elif out.exists() and (not out.is_dir() or any(not p.name.startswith(".partial-") for p in out.iterdir())):
        raise ValueError(f"{out}: is not empty and has no recipe.json, wanted an empty or new folder")
    else:
        write_json(place, wanted)
