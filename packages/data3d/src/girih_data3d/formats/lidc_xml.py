"""The XML files of LIDC-IDRI: what each reader marked in one CT scan."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from girih_data3d.errors import ManifestError, ScanError

CT_MESSAGE, SESSION, NODULE, NON_NODULE = "LidcReadMessage", "readingSession", "unblindedReadNodule", "nonNodule"
"""Elements, whatever their name space; radiographs come with an IdriReadMessage and have other sessions."""
MAX_XML_BYTES = 64 << 20
"""Far above the largest of the collection; a longer file is no reading."""
MAX_MARKS, MAX_POINTS = 1000, 10_000
"""Of a scan, and of an outline; the collection has some sixty and 311 at most."""
WHOLE = re.compile(r"[+-]?[0-9]{1,9}(\.0*)?")


@dataclass(frozen=True, eq=False)
class Outline:
    """A closed line around a part of a nodule in one slice, or around a hole in it."""

    z_mm: float
    """Of the slice: the third number of its Image Position (Patient)."""
    sop_uid: str
    """SOP Instance UID of the slice; "" if the file does not say."""
    inclusion: bool
    """False: what it surrounds is not part of the nodule."""
    points_xy: Int64[np.ndarray, "n 2"]
    """Pixels (column, row), from 0."""


@dataclass(frozen=True, eq=False)
class Mark:
    """What one reader said about one nodule."""

    reader: int
    """Number of the reading session, from 0; sessions of different scans have nothing in common."""
    nodule_id: str
    """The reader's own; nothing says which marks of different readers are of one nodule."""
    malignancy: int | None
    """1 to 5."""
    outlines: tuple[Outline, ...]

    @property
    def is_point(self) -> bool:
        """Return whether this is a nodule below 3 mm: one pixel was marked, and nothing was outlined."""
        return all(len(outline.points_xy) == 1 for outline in self.outlines)


@dataclass(frozen=True, eq=False)
class Readings:
    """Everything that was marked in a scan."""

    readers: int
    marks: tuple[Mark, ...]
    non_nodules: int
    """Marks of lesions of 3 mm or more that are no nodules."""


@dataclass(frozen=True)
class Heading:
    """The beginning of a file."""

    message: str
    """Name of the outermost element."""
    series_uid: str
    """SeriesInstanceUID of the scan that was read; "" if the file does not say."""
    has_readings: bool


def read_heading(path: Path) -> Heading:
    """Return what an XML file is about, without reading all of it.

    Raises:
        ManifestError: unreadable, no XML, or an XML file with a document type or entities of its own.
    """
    message, series_uid = "", ""
    try:
        for event, element in _stream(path):
            name = _name(element)
            if event == "start" and not message:
                message = name
            elif event == "start" and name == SESSION:
                return Heading(message, series_uid, True)
            elif event == "end" and name.casefold() == "seriesinstanceuid":
                series_uid = (element.text or "").strip()
    except _BrokenXMLError as error:
        raise ManifestError(f"{path}: {error}") from error
    return Heading(message, series_uid, False)


def read_readings(path: Path) -> Readings:
    """Return all marks of a scan's readers.

    Raises:
        ScanError: as `read_heading`; or not the readings of a CT scan, or a mark without an outline or with a number
            that is none.
    """
    root: Any = None
    try:
        for _, element in _stream(path):
            root = element if root is None else root
    except _BrokenXMLError as error:
        raise ScanError(f"{path}: {error}") from error
    if _name(root) != CT_MESSAGE:
        raise ScanError(f"{path}: holds {_name(root)!r}, wanted {CT_MESSAGE!r}")
    sessions = list(_children(root, SESSION))
    marks = [
        _mark(f"{path}: reading session {number}", number, nodule)
        for number, session in enumerate(sessions)
        for nodule in _children(session, NODULE)
    ]
    if len(marks) > MAX_MARKS:
        raise ScanError(f"{path}: {len(marks)} marks, wanted at most {MAX_MARKS}")
    non_nodules = sum(1 for session in sessions for _ in _children(session, NON_NODULE))
    return Readings(len(sessions), tuple(marks), non_nodules)


class _BrokenXMLError(ValueError):
    pass


def _stream(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the elements of an XML file as they begin and end."""
    try:
        from defusedxml import ElementTree
        from defusedxml.common import DefusedXmlException
    except ImportError as error:
        raise _BrokenXMLError("reading XML needs defusedxml: pip install 'girih-data3d[formats]'") from error
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise _BrokenXMLError(f"{path.stat().st_size} bytes of XML, wanted at most {MAX_XML_BYTES}")
        with path.open("rb") as stream:
            yield from ElementTree.iterparse(stream, events=("start", "end"), forbid_dtd=True)
    except DefusedXmlException as error:
        raise _BrokenXMLError(
            f"declares a document type or entities, which no file of LIDC-IDRI does; it may be an attack ({error})"
        ) from error
    except (OSError, SyntaxError, LookupError, ValueError) as error:  # SyntaxError: not XML; LookupError: the encoding
        if isinstance(error, _BrokenXMLError):
            raise
        raise _BrokenXMLError(f"not a readable XML file, or truncated: {error}") from error


def _mark(where: str, reader: int, nodule: Any) -> Mark:
    nodule_id = _text(nodule, "noduleID")
    where = f"{where}, nodule {nodule_id!r}"
    malignancy = None
    for ratings in _children(nodule, "characteristics"):
        if text := _text(ratings, "malignancy"):
            malignancy = _whole(where, "malignancy", text)
            if not 1 <= malignancy <= 5:
                raise ScanError(f"{where}: malignancy is {malignancy}, wanted 1 to 5")
    outlines = tuple(_outline(where, roi) for roi in _children(nodule, "roi"))
    if not outlines:
        raise ScanError(f"{where}: no roi, wanted at least one")
    return Mark(reader, nodule_id, malignancy, outlines)


def _outline(where: str, roi: Any) -> Outline:
    z_text = _text(roi, "imageZposition")
    try:
        z_mm = float(z_text)
    except ValueError:
        z_mm = float("nan")
    if not np.isfinite(z_mm):
        raise ScanError(f"{where}: imageZposition is {z_text!r}, wanted a finite number")
    inclusion = _text(roi, "inclusion").upper()
    if inclusion not in ("TRUE", "FALSE"):
        raise ScanError(f"{where}: inclusion is {inclusion!r}, wanted TRUE or FALSE")
    points = [
        [_whole(where, name, _text(edge, name)) for name in ("xCoord", "yCoord")] for edge in _children(roi, "edgeMap")
    ]
    if not 1 <= len(points) <= MAX_POINTS:
        raise ScanError(f"{where}: a roi of {len(points)} edgeMap at imageZposition {z_text}, wanted 1 to {MAX_POINTS}")
    return Outline(z_mm, _text(roi, "imageSOP_UID"), inclusion == "TRUE", np.array(points, np.int64))


def _whole(where: str, name: str, text: str) -> int:
    if not WHOLE.fullmatch(text):
        raise ScanError(f"{where}: {name} is {text!r}, wanted a whole number")
    return int(float(text))


def _children(element: Any, name: str) -> Iterator[Any]:
    return (child for child in element if _name(child) == name)


def _text(element: Any, name: str) -> str:
    """Return the text of the first child of a name, "" if there is none."""
    return next(((child.text or "").strip() for child in _children(element, name)), "")


def _name(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]
