"""girih-data3d formats, and the options --format of the other commands."""

import argparse
import sys
import textwrap
from typing import Any

from girih_data3d.case_source import Dataset
from girih_data3d.formats import FORMATS, Format, compare_counts, get_format, options_of, parse_options, read_format
from girih_data3d.manifest import read_manifest
from girih_data3d.store import Store

WIDTH = 100


def add_formats(commands: Any) -> None:
    """Add the command that tells of the formats."""
    command = commands.add_parser("formats", help="the public datasets and layouts that `prepare --format` reads")
    command.add_argument("name", nargs="?", help="one of them: its layout, options, and what nobody has checked yet")
    command.set_defaults(run=_formats)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add --format and -o to a command that reads scans."""
    parser.add_argument(
        "--format", metavar="NAME", help="DATA is a public dataset as it was unpacked; see girih-data3d formats"
    )
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the format; repeatable",
    )


def read_dataset(options: argparse.Namespace) -> Dataset:
    """Return the cases of `options.data`.

    Raises:
        ValueError: no such format, or an option that it does not have or take; options without a format.
        ManifestError: as `read_format` and `read_manifest`.
    """
    if options.format is None:
        if options.options:
            raise ValueError(f"-o {options.options[0]}: options are those of a format; give --format")
        return read_manifest(options.data)
    return read_format(options.format, options.data, **parse_options(get_format(options.format), options.options))


def print_comparison(name: str, store: Store) -> bool:
    """Print what was found and what is stated of a prepared dataset; return whether all of it is the same."""
    known = get_format(name)
    rows = compare_counts(known, store)
    for row in rows:
        mark = "" if row.equal else "  differs"
        sys.stdout.write(f"{row.what}: {row.found} / {row.stated}{mark}\n")
    equal = sum(row.equal for row in rows)
    sys.stdout.write(f"{store.root}: {equal} of {len(rows)} as stated of {known.title} (found / stated)\n")
    return equal == len(rows)


def _formats(options: argparse.Namespace) -> int:
    if options.name is None:
        sys.stdout.write("\n".join(_describe(known) for known in FORMATS.values()))
    else:
        known = get_format(options.name)
        layout = (known.read.__doc__ or "").strip().partition("\n\n    Args:")[0]
        sys.stdout.write(f"{_describe(known)}\n{_indented(layout)}")
        if known.unverified:
            sys.stdout.write("  not checked against the real files yet:\n")
            sys.stdout.write("".join(_indented(f"- {fact}", "    ") for fact in known.unverified))
    return 0


def _describe(known: Format) -> str:
    lines = [f"{known.name}: {known.title}\n", f"  from: {known.home}; licence: {known.licence}\n"]
    if known.counts is not None:
        parts = ", ".join(f"{part} {count}" for part, count in known.counts.parts.items())
        lines.append(f"  stated: {known.counts.images} images ({parts}), {known.counts.objects} objects\n")
    for option in options_of(known).values():
        text = f"-o {option.name}={_shown(option.default)} ({option.wanted}) {option.doc}"
        lines.append(_indented(text, "  "))
    return "".join(lines)


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def _indented(text: str, indent: str = "  ") -> str:
    """Return paragraphs as lines of at most `WIDTH` characters."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return "".join(
        textwrap.fill(paragraph, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ") + "\n"
        for paragraph in paragraphs
    )
