"""A build backend that answers one question from PKG-INFO, so that pip can download an sdist and run none of its code.

pip asks the build backend for a source archive's metadata before it saves the archive. `fetch` copies this file to
`setuptools/build_meta.py` in a temporary folder and puts that folder first on pip's PYTHONPATH. It is never imported
by girih.
"""

import email.parser
import pathlib
import sys

__legacy__ = sys.modules[__name__]  # the backend object pip names when an archive has no pyproject.toml


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:
    """Nothing is built, so nothing is required."""
    return []


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: object = None) -> str:
    """Write METADATA as a copy of the archive's own PKG-INFO and return the folder's name."""
    content = pathlib.Path("PKG-INFO").read_bytes()
    header = email.parser.BytesHeaderParser().parsebytes(content)
    folder = pathlib.Path(metadata_directory, f"{header['Name']}-{header['Version']}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_bytes(content)
    return folder.name
