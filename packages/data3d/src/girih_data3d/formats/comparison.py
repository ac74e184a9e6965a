"""Whether a prepared dataset has as many images and objects as a paper states."""

from dataclasses import dataclass

from girih_data3d.formats.format import Format
from girih_data3d.store import Store


@dataclass(frozen=True)
class Compared:
    """One number, as found and as stated."""

    what: str
    """"images", "objects", or "part train" of an official split."""
    found: int
    stated: int

    @property
    def equal(self) -> bool:
        """Return whether both are the same."""
        return self.found == self.stated


def compare_counts(known: Format, store: Store) -> list[Compared]:
    """Compare a prepared dataset with the numbers that its format states.

    Images are cases of which it is known which objects they hold, objects those not to ignore. Parts are compared if
    the dataset has an official split.

    Raises:
        ValueError: nothing is stated of this format.
    """
    stated = known.counts
    if stated is None:
        raise ValueError(f"format {known.name}: no counts are stated of it")
    index = store.index
    rows = [
        Compared("images", int(index.annotated.sum()), stated.images),
        Compared("objects", len(index.labels), stated.objects),
    ]
    parts = [part for part, labelled in zip(index.parts, index.annotated, strict=True) if labelled]
    return rows + [Compared(f"part {part}", parts.count(part), count) for part, count in stated.official.items()]
