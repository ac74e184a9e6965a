"""What is known of a public dataset: its name, its licence, how to read it, and the numbers that a paper states."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from girih_data3d.case_source import Dataset


@dataclass(frozen=True)
class Counts:
    """Numbers of annotated images and of objects as stated in "The Missing Piece", Table 1."""

    images: int
    objects: int
    parts: Mapping[str, int]
    """The split of the paper: {"train": 156, "val": 40, "test": 85}."""
    official: Mapping[str, int] = field(default_factory=dict)
    """Annotated images in each official part (`CaseSource.part`), as far as Table 1 tells; {}: no official split."""


@dataclass(frozen=True)
class Format:
    """A layout of files that `read` turns into a `Dataset` by names and tables alone, without looking at a voxel."""

    name: str
    """As typed after --format: "msd-pancreas"."""
    title: str
    home: str
    """Where people get it, by name."""
    licence: str
    read: Callable[..., Dataset]
    """`read(folder: Path, *, option=default, ...)`; options are str, bool, int, float or Literal, and have a line each
    under "Args:" in the docstring."""
    counts: Counts | None = None
    unverified: tuple[str, ...] = ()
    """Facts that nobody has yet checked against the real files."""
