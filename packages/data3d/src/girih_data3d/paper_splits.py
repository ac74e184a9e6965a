"""The splits of "The Missing Piece", Table 1, as rules: the authors' lists of cases are not public.

By arithmetic alone (a share of n cases is ceil(share * n), patients kept together):

- D01 MSD Pancreas, 281 cases: test 30 %, of the rest 20 % validate: exactly 156/40/85.
- D02 RibFrac, the 420 official training cases 80/20 and the 80 official validation cases as test: exactly 336/84/80.
- D03 KiTS21, 300 cases: test 15 %: exactly 204/51/45.
- D04 LIDC-IDRI, 1018 scans: exactly 690/173/155 with a test share of 15.2 %, which is read off the table, not stated;
  15 % of the scans would be 153.
- D05 Duke Breast, 911 patients: test 30 %: exactly 509/128/274. Which 11 of the 922 patients are left out is not
  stated, and with all of them the sizes differ.
- D06 LUNA16, ten subsets: 711/88/89 is a fold that tests one of the subsets of 89 scans and validates with one of 88.
  Which one is not stated; of the folds "test k, validate with the next" it is number 7 if subsets 0-7 have 89 scans.
- D07 PN9: the official lists, 6037/670/2091.
- D08 CTA-A: the 1186 internal training cases 80/20, and the internal test set; exactly 948/238/152.

Sizes therefore agree, members do not: only D02's and D08's test sets, D06's folds and D07 are the same cases.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from girih_data3d.resampling import Number
from girih_data3d.split_rules import divide, divide_officially
from girih_data3d.splits import Cases, Member, Split, members


@dataclass(frozen=True)
class PaperSplit:
    """How one of the paper's datasets is divided."""

    sizes: tuple[int, int, int]
    """Cases in train, val and test, as published."""
    test: Number | Literal["val", "test", "official"]
    """Share of all labelled cases, or the official part that is the test set (the share `val` of "train" validates), or
    all parts as they are."""
    val: Number = 0.2
    """Share of the cases left for training."""
    fold: int = 0
    """The one of these sizes."""


PAPER_SPLITS: Mapping[str, PaperSplit] = MappingProxyType(
    {
        "msd-pancreas": PaperSplit((156, 40, 85), test=0.3),
        "ribfrac": PaperSplit((336, 84, 80), test="val"),
        "kits21": PaperSplit((204, 51, 45), test=0.15),
        "lidc-idri": PaperSplit((690, 173, 155), test=0.152),
        "duke-breast": PaperSplit((509, 128, 274), test=0.3),
        "luna16": PaperSplit((711, 88, 89), test="official", fold=7),
        "pn9": PaperSplit((6037, 670, 2091), test="official"),
        "cta-a": PaperSplit((948, 238, 152), test="test"),
    }
)
"""By the name of the dataset's format."""


def paper_split(name: str, cases: Cases, *, seed: int = 0) -> Split:
    """Divide a dataset of the paper by the paper's rule; unlabelled cases are left out.

    Args:
        name: of the format, such as "msd-pancreas".
        cases: a prepared dataset, or one still to prepare.
        seed: 0 or more; of what the official parts leave open.

    Raises:
        ValueError: no such name, or no labelled cases of a part that the rule needs.
    """
    if name not in PAPER_SPLITS:
        raise ValueError(f"no split of {name!r} in the paper, known are {', '.join(PAPER_SPLITS)}")
    rule = PAPER_SPLITS[name]
    labelled = [member for member in members(cases) if member.annotated]
    if rule.test == "official":
        split = divide_officially(cases.name, labelled, seed=seed)
        split.check(cases)
        return replace(split, rule=f"paper, {name}: {split.rule}")
    pool = [member for member in labelled if member.part in (None, "train")]
    _refuse_none(pool, cases, "train")
    if isinstance(rule.test, str):
        tested = [member for member in labelled if member.part == rule.test]
        _refuse_none(tested, cases, rule.test)
        split = divide(cases.name, pool, test=0, val=rule.val, seed=seed)
        split = replace(split, test=tuple(member.case_id for member in tested))
        words = f"official part {rule.test!r}"
    else:
        split = divide(cases.name, pool, test=rule.test, val=rule.val, seed=seed)
        words = f"{rule.test:g}"
    split.check(cases)
    return replace(split, rule=f"paper, {name}: test {words}, val {rule.val:g} of the rest")


def _refuse_none(found: list[Member], cases: Cases, part: str) -> None:
    if not found:
        parts = sorted({str(member.part) for member in members(cases)})
        raise ValueError(
            f"dataset {cases.name!r}: no labelled case of the official part {part!r}; it has the parts {parts}"
        )
