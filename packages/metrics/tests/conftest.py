"""Cases for the tests: hand-made boxes, and random but crowded ones."""

from collections.abc import Callable, Iterator, Sequence

import jaxtyping
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from girih_metrics import Case

settings.register_profile("girih", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("girih")


def cube(z: float, y: float, x: float, side: float) -> list[float]:
    return [z, y, x, z + side, y + side, x + side]


def make_case(
    case_id: str,
    preds: Sequence[tuple[list[float], float, int]] = (),
    gts: Sequence[tuple[list[float], int]] = (),
    **more: object,
) -> Case:
    case: dict[str, object] = {
        "case_id": case_id,
        "pred_boxes": np.array([p[0] for p in preds], dtype=float).reshape(-1, 6),
        "pred_scores": np.array([p[1] for p in preds], dtype=float),
        "pred_labels": np.array([p[2] for p in preds], dtype=np.int64),
        "gt_boxes": np.array([g[0] for g in gts], dtype=float).reshape(-1, 6),
        "gt_labels": np.array([g[1] for g in gts], dtype=np.int64),
    }
    return case | more


# Boxes on a coarse grid, few score levels: crowded cases with many ties.
_box = st.tuples(*[st.integers(0, 5)] * 3, *[st.integers(1, 4)] * 3).map(
    lambda v: [float(x) for x in (*v[:3], v[0] + v[3], v[1] + v[4], v[2] + v[5])]
)
_pred = st.tuples(_box, st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.integers(0, 1))
_gt = st.tuples(_box, st.integers(0, 1))


@st.composite
def case_lists(draw: st.DrawFn, *, ignore: bool = False, min_size: int = 1) -> list[Case]:
    cases = []
    for i in range(draw(st.integers(min_size, 5))):
        gts = draw(st.lists(_gt, max_size=4))
        more: dict[str, object] = {"group": f"patient{i // 2}"}
        if ignore:
            more["gt_ignore"] = np.array(
                draw(st.lists(st.booleans(), min_size=len(gts), max_size=len(gts))), dtype=bool
            )
        cases.append(make_case(f"c{i}", draw(st.lists(_pred, max_size=6)), gts, **more))
    return cases


@pytest.fixture(name="cube", scope="session")
def _cube() -> Callable[..., list[float]]:
    return cube


@pytest.fixture(name="make_case", scope="session")
def _make_case() -> Callable[..., Case]:
    return make_case


@pytest.fixture(name="case_lists", scope="session")
def _case_lists() -> Callable[..., st.SearchStrategy[list[Case]]]:
    return case_lists


@pytest.fixture
def plain_types() -> Iterator[None]:
    """Lets a wrong argument reach the code, where the test run checks types before it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(name="case_a")
def _case_a() -> list[Case]:
    """Four images, three objects; numbers of the nnDetection evaluator are known for it."""
    return [
        make_case(
            "1",
            [(cube(0, 0, 0, 10), 0.9, 0), (cube(50, 50, 50, 10), 0.8, 0), (cube(2, 0, 0, 10), 0.7, 0)],
            [(cube(0, 0, 0, 10), 0)],
        ),
        make_case("2", [(cube(5, 0, 0, 10), 0.6, 0)], [(cube(0, 0, 0, 10), 0)]),
        make_case("3", [(cube(30, 30, 30, 10), 0.95, 0)], []),
        make_case("4", [], [(cube(0, 0, 0, 10), 0)]),
    ]
