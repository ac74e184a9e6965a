"""What was done and what came out, in two plain sentences computed from the numbers. It never claims a benefit."""

import itertools
from collections.abc import Mapping, Sequence

from girih.report.files import Interval, Scores

FEW_PATIENTS = 10
"""Below this many patients, a bootstrap over them says little about others."""


def summary(arms: Mapping[str, Scores], steps: Mapping[str, int], pretraining_steps: int | None) -> str:
    """Return what was done and what came out.

    Args:
        arms: name -> scores, of the same cases.
        steps: name -> optimiser steps of its training.
        pretraining_steps: optimiser steps of the pre-training; None if there was none.
    """
    first = next(iter(arms.values()))
    before = (
        "" if pretraining_steps is None else f"an encoder was pre-trained for {counted(pretraining_steps, 'step')}; "
    )
    names, were = _list([f"“{name}”" for name in arms]), "was" if len(arms) == 1 else "were"
    done = (
        f"{before}{counted(len(arms), 'detector')} ({names}) {were} trained for {_steps(steps)} and scored on "
        f"{counted(first.n_images, 'image')} of {counted(first.n_patients, 'patient')} with "
        f"{counted(first.n_objects, 'object')}, where a prediction is a hit from an IoU of {first.iou:g}."
    )
    came_out = _list([f"{with_interval(scores.ap, scores.confidence)} for “{name}”" for name, scores in arms.items()])
    return f"{done[0].upper()}{done[1:]} AP was {came_out}{_verdict(arms)}."


def limits(arms: Mapping[str, Scores]) -> list[str]:
    """Return what the numbers cannot say, and the notes of the scores."""
    first = next(iter(arms.values()))
    said = [
        f"The {first.confidence:.0%} intervals come from {counted(first.draws, 'bootstrap draw')} of the test set. "
        "They do not contain the chance in training: another seed would move every number, and each arm is one run."
    ]
    if first.n_patients < FEW_PATIENTS:
        said.append(
            f"The test set has only {counted(first.n_patients, 'patient')}: the intervals understate how much the "
            "numbers would differ for other patients."
        )
    shared = [note for note in first.notes if all(note in scores.notes for scores in arms.values())]
    own = [f"{name}: {note}" for name, scores in arms.items() for note in scores.notes if note not in shared]
    return said + shared + own


def with_interval(number: Interval, confidence: float) -> str:
    """Return a number with its interval in words."""
    if number.value != number.value:
        return "undefined"
    return f"{number.value:.3f} ({confidence:.0%} interval {decimals(number.low)} to {decimals(number.high)})"


def decimals(value: float) -> str:
    """Return a number with three decimals; NaN is "undefined"."""
    return "undefined" if value != value else f"{value:.3f}"


def includes_zero(difference: Interval) -> bool:
    """Return whether the interval of a difference includes 0, or is undefined."""
    return not (difference.low > 0 or difference.high < 0)


def counted(n: int, noun: str) -> str:
    """Return "1 image", "2 images"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _verdict(arms: Mapping[str, Scores]) -> str:
    """What the intervals allow to say about the arms; nothing for one arm."""
    differences = [ap for scores in arms.values() for ap, _ in scores.difference.values()]
    if differences:
        unsure = [includes_zero(ap) for ap in differences]
        return _said(unsure, "the interval of the paired difference", "includes 0", "excludes 0")
    unsure = [_overlap(a.ap, b.ap) for a, b in itertools.combinations(arms.values(), 2)]
    return _said(unsure, "the intervals", "overlap", "do not overlap") if unsure else ""


def _said(open_questions: Sequence[bool], what: str, unclear: str, clear: str) -> str:
    if all(open_questions):
        return f"; {what} {unclear}, so these data do not tell the arms apart"
    if any(open_questions):
        unsure = f"{sum(open_questions)} of {counted(len(open_questions), 'comparison')}"
        return f"; in {unsure} {what} {unclear}, so these data do not tell those arms apart"
    return f"; {what} {clear}, which holds for these single training runs and these test images only"


def _overlap(a: Interval, b: Interval) -> bool:
    return not (a.low > b.high or b.low > a.high)


def _steps(steps: Mapping[str, int]) -> str:
    if len(set(steps.values())) == 1:
        return counted(next(iter(steps.values())), "step") + (" each" if len(steps) > 1 else "")
    return _list([counted(n, "step") for n in steps.values()])


def _list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
