"""A protocol as data: how to match, which scores to count."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from girih_metrics.cases import check_cases
from girih_metrics.interfaces import Case
from girih_metrics.matches import Matches
from girih_metrics.matching import match

Score = Callable[[Matches, np.ndarray], xr.DataArray]
"""From matches and weights (draws, images) to one number per draw."""


def as_given(case: Case) -> Case:
    """Return the case as it is."""
    return case


@dataclass(frozen=True)
class Preset:
    """A protocol: the keyword arguments of `match`, and named scores.

    `prepare` changes a case before it is matched. `classes` replaces the classes where the protocol knows only one.
    `lower_is_better` names the scores that are counts of errors.
    """

    name: str
    rules: Mapping[str, Any]
    scores: Mapping[str, Score]
    prepare: Callable[[Case], Case] = as_given
    classes: tuple[str, ...] | None = None
    lower_is_better: frozenset[str] = frozenset()

    def match(self, cases: Sequence[Case], *, classes: Sequence[str]) -> Matches:
        """Match the cases by the rules of this protocol.

        Raises:
            ValueError: bad cases, see `match`.
        """
        if self.prepare is as_given:
            return match(cases, classes=classes, **self.rules)
        check_cases(cases, len(classes))
        return match([self.prepare(case) for case in cases], classes=self.classes or classes, **self.rules)

    def score(self, matches: Matches, weights: np.ndarray | None = None) -> xr.DataArray:
        """Return every score, along a dimension metric; with weights (draws, images), also along draw.

        Raises:
            ValueError: broken weights.
        """
        used = np.ones((1, matches.n_images)) if weights is None else weights
        values = [np.asarray(score(matches, used).values, dtype=np.float64) for score in self.scores.values()]
        result = xr.DataArray(np.stack(values), dims=("metric", "draw"), coords={"metric": list(self.scores)})
        return result if weights is not None else result.isel(draw=0)

    def with_rules(self, **rules: Any) -> "Preset":
        """Return the same protocol with some arguments of `match` changed, say criterion="box_iou"."""
        return replace(self, rules={**self.rules, **rules})
