"""Rows of .xlsx files, read one by one."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from girih_data3d.errors import ManifestError
from girih_data3d.formats.table import Columns, Row, rows_of


def read_xlsx(path: Path, required: Columns, optional: Columns | None = None, *, max_bytes: int) -> Iterator[Row]:
    """Yield the rows of the first sheet; numbers become their shortest text, formulas what was last computed.

    Args:
        path: the file.
        required: columns, as for `read_csv`.
        optional: columns that may be missing.
        max_bytes: of the unpacked file; a larger one is refused before it is unpacked.

    Raises:
        ManifestError: openpyxl is not installed; unreadable, too large; or as `rows_of`.
    """
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError as error:
        raise ManifestError(f"{path}: .xlsx files need openpyxl: pip install 'girih-data3d[formats]'") from error
    # what openpyxl lets through from zipfile, zlib, the XML parser (a ParseError is a SyntaxError) and its own checks
    broken: tuple[type[Exception], ...] = (OSError, EOFError, zipfile.BadZipFile, zlib.error, SyntaxError, LookupError)
    broken += (ValueError, TypeError, AttributeError, RuntimeError, InvalidFileException)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > max_bytes:
            raise ManifestError(f"{path}: {size} bytes when unpacked, wanted at most {max_bytes}")
        book = load_workbook(path, read_only=True, data_only=True)
        try:
            yield from rows_of(path, book.worksheets[0].iter_rows(values_only=True), required, optional)
        finally:
            book.close()
    except ManifestError:
        raise
    except broken as error:
        raise ManifestError(f"{path}: not a readable .xlsx file: {type(error).__name__}: {error}") from error
