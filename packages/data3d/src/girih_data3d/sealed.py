"""A zarr group whose zarr.json guards all bytes below it: size and CRC-32C of each file, and a CRC-32C of itself."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from girih_data3d.checksum import BLANK, checked_text, crc32c, file_crc32c, own_checksum
from girih_data3d.folder import DamageError, Folder, LocalFolder
from girih_data3d.layout import SCHEMA

NAME = "zarr.json"


@dataclass(frozen=True)
class Seal:
    """What a sealed group's zarr.json says."""

    attributes: dict[str, Any]
    files: dict[str, dict[str, int]]
    """Name of every other file -> its "bytes" and "crc32c"."""
    checksum: int
    """Of the zarr.json, and so of everything."""
    size: int
    """Bytes of all files."""

    @property
    def small(self) -> list[str]:
        """The names of the metadata files below the group's own."""
        return [name for name in self.files if name.endswith(NAME)]


def seal(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Write the zarr.json of a group whose other files are all there; "files" and "checksum" join "girih".

    Raises:
        ValueError: an attribute that is not finite.
    """
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "crc32c": file_crc32c(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / NAME
    }
    record = {**attributes["girih"], "files": files, "checksum": BLANK}
    group = {"zarr_format": 3, "node_type": "group", "attributes": {**attributes, "girih": record}}
    (folder / NAME).write_bytes(checked_text(group))


def read_seal(folder: Folder) -> Seal:
    """Return what a group's zarr.json says, after checking it; no other file is touched.

    Raises:
        DamageError: missing, changed, or not a sealed group.
    """
    content = folder.contents([NAME])[NAME]
    try:
        checksum = own_checksum(content)
    except ValueError as error:
        raise DamageError(folder.locate(NAME), str(error)) from error
    try:
        attributes = json.loads(content)["attributes"]
        files = attributes["girih"]["files"]
        return Seal(attributes, files, checksum, len(content) + sum(wanted["bytes"] for wanted in files.values()))
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(folder.locate(NAME), f"not a sealed group: {error!r}") from error


def read_case_seal(folder: Folder, case_id: str) -> Seal:
    """Return what the zarr.json of a case says, after checking it; no other file is touched.

    Raises:
        DamageError: missing, changed, of another case, or of another schema.
    """
    found = read_seal(folder)
    record = found.attributes["girih"]
    if (record.get("schema"), record.get("case_id")) != (SCHEMA, case_id):
        holds = f"holds case {record.get('case_id')!r} of schema {record.get('schema')!r}"
        raise DamageError(folder.locate(NAME), f"{holds}, wanted {case_id!r} of schema {SCHEMA}")
    return found


def check_files(folder: Folder, seal: Seal, *, whole: Collection[str]) -> dict[str, bytes]:
    """Check that every file is there with its size, and those in `whole` byte for byte; return the content of these.

    Raises:
        DamageError: the first file that is missing or differs.
    """
    others = [name for name in seal.files if name not in whole]
    contents = folder.contents(list(whole))
    sizes = {**folder.sizes(others), **{name: len(content) for name, content in contents.items()}}
    for name, wanted in seal.files.items():
        if sizes[name] != wanted["bytes"]:
            raise DamageError(folder.locate(name), f"{sizes[name]} bytes, wanted {wanted['bytes']}")
    for name, content in contents.items():
        if crc32c(content) != seal.files[name]["crc32c"]:
            raise DamageError(folder.locate(name), "fails its checksum")
    return contents


def check_bytes(folder: LocalFolder, files: Mapping[str, Mapping[str, int]]) -> None:
    """Check every byte of a seal's files, which are on local disk and may be larger than memory.

    Raises:
        DamageError: the first file that cannot be read or differs.
    """
    for name, wanted in files.items():
        try:
            found = file_crc32c(folder.path / name)
        except OSError as error:
            raise DamageError(folder.locate(name), f"not readable: {error}") from error
        if found != wanted["crc32c"]:
            raise DamageError(folder.locate(name), "fails its checksum")
