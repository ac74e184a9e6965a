"""The options of a format's reader: names, types, choices, defaults and what they mean, from its signature."""

import inspect
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from girih_data3d.formats.format import Format

TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Option:
    """One option of a reader."""

    name: str
    kinds: tuple[type, ...]
    """Types that a value may have; () if it is one of the choices."""
    choices: tuple[Any, ...]
    default: Any
    doc: str

    @property
    def wanted(self) -> str:
        """Return what a value has to be, in words."""
        if self.choices:
            return " | ".join(str(choice) for choice in self.choices)
        names = {bool: "true | false", int: "a whole number", float: "a number", str: "text", types.NoneType: "none"}
        return " | ".join(names[kind] for kind in self.kinds)

    def accepts(self, value: Any) -> bool:
        """Return whether a value may be given; whole numbers are numbers, truth values are none."""
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        return type(value) in self.kinds or (type(value) is int and float in self.kinds)

    def parse(self, text: str) -> Any:
        """Return the value that a text stands for; the text itself if it stands for none that is accepted."""
        if self.choices:
            return next((choice for choice in self.choices if str(choice).lower() == text.lower()), text)
        if types.NoneType in self.kinds and text.lower() == "none":
            return None
        if bool in self.kinds:
            return TRUTHS.get(text.lower(), text)
        for kind in (int, float):
            if kind in self.kinds:
                try:
                    return kind(text)
                except ValueError:
                    pass
        return text


def options_of(known: Format) -> dict[str, Option]:
    """Return the options of a format's reader by name, in its order."""
    docs = _argument_docs(inspect.getdoc(known.read) or "")
    signature = inspect.signature(known.read, eval_str=True)
    keywords = (p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY)
    return {p.name: Option(p.name, *_type_of(p.annotation), p.default, docs.get(p.name, "")) for p in keywords}


def check_options(known: Format, given: Mapping[str, Any]) -> None:
    """Refuse options that the format does not have, and values that it does not take.

    Raises:
        ValueError: names the option, and lists those there are or the values it takes.
    """
    options = options_of(known)
    for name, value in given.items():
        if name not in options:
            there = f"it has {', '.join(options)}" if options else "it has none"
            raise ValueError(f"format {known.name}: no option {name!r}, {there}")
        if not options[name].accepts(value):
            raise ValueError(f"format {known.name}: {name} is {value!r}, wanted {options[name].wanted}")


def parse_options(known: Format, texts: Sequence[str]) -> dict[str, Any]:
    """Return the options given as "name=value".

    Raises:
        ValueError: as `check_options`, a text without "=", or an option given twice.
    """
    options, found = options_of(known), {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"format {known.name}: option {text!r}, wanted NAME=VALUE")
        if name in found:
            raise ValueError(f"format {known.name}: option {name!r} is given twice")
        found[name] = options[name].parse(value) if name in options else value
    check_options(known, found)
    return found


def _type_of(annotation: Any) -> tuple[tuple[type, ...], tuple[Any, ...]]:
    """Return the types and the choices of an annotation."""
    if get_origin(annotation) is Literal:
        return (), get_args(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        members = [_type_of(member) for member in get_args(annotation)]
        kinds = tuple(kind for member in members for kind in member[0])
        choices = tuple(choice for member in members for choice in member[1])
        return (kinds, ()) if not choices else ((), (*choices, *(None for kind in kinds if kind is types.NoneType)))
    return (annotation,), ()


def _argument_docs(doc: str) -> dict[str, str]:
    """Return the texts under "Args:" of a docstring, on one line each."""
    found: dict[str, str] = {}
    name = None
    for line in doc.partition("\nArgs:\n")[2].splitlines():
        if line and not line.startswith(" "):
            break
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2].strip()
        elif name is not None:
            found[name] = f"{found[name]} {line.strip()}".rstrip()
    return found
