"""PrepareSpec: its hash, its round trip, its refusals."""

import pytest

from girih_data3d import PrepareSpec


def test_hash_depends_on_values_not_on_how_they_are_written() -> None:
    assert PrepareSpec(target_zyx_mm=(1, 1, 1)) == PrepareSpec()
    assert PrepareSpec(target_zyx_mm=(1, 1, 1)).sha256 == PrepareSpec().sha256
    assert len({PrepareSpec(dtype=d).sha256 for d in ("int16", "float16", "float32")}) == 3


def test_json_round_trip() -> None:
    spec = PrepareSpec(target_zyx_mm=None, normalisation="ct", clip=(-1000, 400), mean=(1,), std=(2,), crop=None)
    assert PrepareSpec.from_json(spec.to_json()) == spec
    assert spec.record == {"scheme": "ct", "clip": [-1000, 400], "mean": [1], "std": [2]}
    with pytest.raises(ValueError, match="unknown field 'chunk'"):
        PrepareSpec.from_json({"chunk": 64})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"target_zyx_mm": (1, 0, 1)}, "target_zyx_mm"),
        ({"normalisation": "ct"}, "needs clip"),
        ({"quant_step": 0.0}, "quant_step"),
        ({"dtype": "int8"}, "int8"),
        ({"crop": "lung"}, "lung"),
    ],
)
def test_refusals(kwargs: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        PrepareSpec(**kwargs)
