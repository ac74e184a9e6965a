"""The command line: girih-data3d split and girih-data3d leakage, on prepared datasets."""

import argparse
import sys
from pathlib import Path
from typing import Any

from girih_data3d.leakage import WORDS, LeakReport, find_leaks, find_leaks_within
from girih_data3d.paper_splits import PAPER_SPLITS, PaperSplit, paper_split
from girih_data3d.split_rules import draws_val, holdout_split, kfold_split, official_split, subset
from girih_data3d.splits import Member, Split, members, read_split
from girih_data3d.store import Store

RULES = ("holdout", "kfold", "official", "paper")
FAILED = 1
LINES = 1000
"""Leaks that are written line by line; the rest is counted."""


def add_split(commands: Any) -> None:
    """Add the sub-command `split`."""
    parser = commands.add_parser("split", help="divide a prepared dataset by patient into train, val and test")
    parser.add_argument("root", type=Path, help="folder of the prepared dataset")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="split.json to write")
    parser.add_argument("--rule", choices=RULES, help="default: paper with --paper, else holdout")
    parser.add_argument(
        "--test", type=float, metavar="SHARE", help="of all cases; default: 0.2 for holdout, 0 for kfold"
    )
    parser.add_argument(
        "--val", type=float, metavar="SHARE", help="of the other cases; for holdout, and official without one; 0.2"
    )
    parser.add_argument("--folds", type=int, metavar="N", help="for kfold; default: 5")
    parser.add_argument(
        "--paper",
        choices=sorted(PAPER_SPLITS),
        metavar="FORMAT",
        help="whose rule of the paper; with --rule paper by default the dataset's name",
    )
    parser.add_argument("--fraction", type=float, metavar="SHARE", help="train on this part of the training cases only")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--stratify", action="store_true", help="equal shares of patients with and without objects")
    parser.add_argument("--overwrite", action="store_true", help="replace another split that is in --out")
    parser.set_defaults(run=_split)


def add_leakage(commands: Any) -> None:
    """Add the sub-command `leakage`."""
    parser = commands.add_parser(
        "leakage", help="scans of one dataset that are in another; exit code 1 and a line for each"
    )
    parser.add_argument("a", type=Path, help="folder of the prepared dataset to pre-train on")
    parser.add_argument(
        "b",
        type=Path,
        nargs="?",
        help="folder of the one to evaluate on; without it, the parts of --split are compared",
    )
    parser.add_argument("--split", type=Path, metavar="FILE", help="of B: only what it validates or tests on counts")
    parser.add_argument(
        "--same-patients", action="store_true", help="patients' ids mean the same patients in both datasets"
    )
    parser.add_argument(
        "--allow-unknown", action="store_true", help="exit code 0 though an older version prepared some cases"
    )
    parser.set_defaults(run=_leakage)


def _split(options: argparse.Namespace) -> int:
    store = Store.open(options.root)
    split = _ruled(options, store)
    if options.fraction is not None:
        split = subset(split, store, fraction=options.fraction, seed=options.seed or 0, stratify=options.stratify)
    split.check(store)
    if options.out.exists() and not options.overwrite and read_split(options.out) != split:
        raise ValueError(f"{options.out} holds another split, which runs may have used; --overwrite replaces it")
    split.write(options.out)
    sys.stdout.write(f"{options.out}: {split.rule}; seed {split.seed}\n{_table(split, store)}")
    if (options.paper or options.rule == "paper") and options.fraction is None:
        sys.stdout.write(_published(split, PAPER_SPLITS[options.paper or store.name]))
    return 0


def _ruled(options: argparse.Namespace, store: Store) -> Split:
    """Divide as the options say.

    Raises:
        ValueError: an option that the rule does not have.
    """
    rule = options.rule or ("paper" if options.paper else "holdout")
    if options.paper and rule != "paper":
        raise ValueError(f"--paper is no option of the rule {rule}")
    own = {"holdout": ("test", "val"), "kfold": ("test", "folds"), "official": ("val",), "paper": ()}[rule]
    given: dict[str, Any] = {
        name: value for name in ("test", "val", "folds") if (value := getattr(options, name)) is not None
    }
    foreign = next((name for name in given if name not in own), None)
    if foreign is not None:
        raise ValueError(f"--{foreign} is no option of the rule {rule}")
    if rule == "paper":
        if options.stratify and options.fraction is None:
            raise ValueError("--stratify is no option of the rule paper, except with --fraction")
        return paper_split(options.paper or store.name, store, seed=options.seed or 0)
    drawn = {**given, "seed": options.seed or 0, "stratify": options.stratify}
    if rule == "kfold":
        return kfold_split(store, **drawn)
    if rule == "holdout":
        return holdout_split(store, **drawn)
    if options.fraction is not None and not draws_val(members(store)):
        return official_split(store, **given)  # seed and stratify are those of the subset
    return official_split(store, seed=options.seed, stratify=options.stratify, **given)


def _table(split: Split, store: Store) -> str:
    """Return a line per part: cases, patients, objects, and the cases of which nobody knows the objects."""
    known = {member.case_id: member for member in members(store)}
    lines = [f"{'':12}{'cases':>8}{'patients':>10}{'objects':>9}{'unlabelled':>12}\n"]
    named: set[str] = set()
    for number in range(len(split.folds)):
        parts = split.parts(number)
        named.update(*parts.values())
        for part, case_ids in parts.items():
            name = part if len(split.folds) == 1 else f"{number} {part}"
            lines.append(_line(name, [known[case_id] for case_id in case_ids]))
    left_out = [member for member in known.values() if member.case_id not in named]
    return "".join(lines) + (_line("left out", left_out) if left_out else "")


def _line(name: str, found: list[Member]) -> str:
    objects = sum(member.objects or 0 for member in found)
    unlabelled = sum(not member.annotated for member in found)
    return f"{name:12}{len(found):8}{len({m.patient_id for m in found}):10}{objects:9}{unlabelled:12}\n"


def _published(split: Split, rule: PaperSplit) -> str:
    """Return a line that compares the sizes with the paper's."""
    wanted = "/".join(map(str, rule.sizes))
    if rule.fold >= len(split.folds):
        return f"published: {wanted}\n"
    found = "/".join(str(len(ids)) for ids in split.parts(rule.fold).values())
    where = f"fold {rule.fold} is" if len(split.folds) > 1 else "these are"
    return f"published: {wanted}; {where} {found}{'' if found == wanted else ', so the dataset has other cases'}\n"


def _leakage(options: argparse.Namespace) -> int:
    a = Store.open(options.a)
    split = None if options.split is None else read_split(options.split)
    if options.b is None:
        if split is None:
            raise ValueError("a second dataset, or --split, is needed")
        if options.same_patients:
            raise ValueError("--same-patients is for two datasets; within one patients are always compared")
        return _report(find_leaks_within(a, split), f"{options.a}, {options.split}", options.allow_unknown)
    b = Store.open(options.b)
    if split is not None:
        split.check(b)
        b = b.select(
            case_id
            for number in range(len(split.folds))
            for part, case_ids in split.parts(number).items()
            if part != "train"
            for case_id in case_ids
        )
    report = find_leaks(a, b, same_patients=options.same_patients)
    return _report(report, f"{options.a}, {options.b}", options.allow_unknown)


def _report(report: LeakReport, where: str, allow_unknown: bool) -> int:
    for leak in report.leaks[:LINES]:
        sys.stdout.write(f"{leak.case_a}\t{leak.case_b}\t{WORDS[leak.reason]}\t{leak.value}\n")
    if len(report.leaks) > LINES:
        sys.stdout.write(f"and {len(report.leaks) - LINES} more\n")
    sys.stdout.write(f"{where}: {report}\n")
    unknown = bool(report.unknown_a or report.unknown_b)
    return FAILED if report.leaks or (unknown and not allow_unknown) else 0
