"""Checks of an objective's config: its fields are the command line, its docstrings the help."""

import ast
import dataclasses
import inspect
import re
import textwrap
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints

from girih_ssl.testing.subject import ContractError, Subject, require

SCALARS = (str, int, float, bool)
YEAR = r"(?:19\d\d|20[0-3]\d)\b"
SOURCE = re.compile(
    rf"(?:\bet al\b|\b(?:and|&) [A-Z][\w-]+)[^;)]{{0,80}}?\b{YEAR}"  # He et al., CVPR 2022; Tarvainen and Valpola 2017
    rf"|\b[A-Z][\w-]*[a-z],? \(?{YEAR}"  # Noroozi 2016
    r"|\b[aA][rR][xX][iI][vV]\S* ?\d{4}\.\d{4,5}"
    r"|\b10\.\d{4,9}/\S"
)


def check_config_is_a_frozen_dataclass(subject: Subject) -> None:
    """Settings that change after the run began would not be those written down."""
    config: Any = subject.config
    require(dataclasses.is_dataclass(config), f"{_name(config)} is not a dataclass: write @dataclass(frozen=True)")
    require(config.__dataclass_params__.frozen, f"{_name(config)} is not frozen: write @dataclass(frozen=True)")


def check_config_fields_have_defaults(subject: Subject) -> None:
    """A method can be tried without knowing its settings."""
    for field in _fields(subject):
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        require(has_default, f"{_name(subject.config)}.{field.name} has no default: give it the published value")


def check_config_field_types(subject: Subject) -> None:
    """A field is a str, int, float, bool or a tuple of these: what a command line and JSON can hold."""
    hints = get_type_hints(type(subject.config))
    for field in _fields(subject):
        hint = hints[field.name]
        members = get_args(hint) if get_origin(hint) is tuple else (hint,)
        require(
            bool(members) and all(member in SCALARS or member is ... for member in members),
            f"{_name(subject.config)}.{field.name}: found type {hint}, "
            f"wanted str, int, float, bool or a tuple of these",
        )


def check_config_field_docstrings(subject: Subject) -> None:
    """A string stands under each field; it is the field's help."""
    documented = {name for cls in type(subject.config).__mro__ for name in _documented_fields(cls)}
    for field in _fields(subject):
        require(
            field.name in documented,
            f"{_name(subject.config)}.{field.name} has no docstring: write a string under the field",
        )


def check_docstring_cites_a_source(subject: Subject) -> None:
    """The config's or the objective's docstring names the paper: author and year, an arXiv number or a DOI."""
    require(
        any(SOURCE.search(_written_docstring(type(made))) for made in (subject.config, subject.build())),
        f"neither {_name(subject.config)} nor its objective cites a source in its docstring: found no author with a "
        f"year, no arXiv number and no DOI; name the paper, such as (He et al. 2022)",
    )


def _fields(subject: Subject) -> tuple["dataclasses.Field[Any]", ...]:
    config: Any = subject.config
    return dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()


def _documented_fields(cls: type) -> list[str]:
    if not dataclasses.is_dataclass(cls):
        return []
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError) as error:
        raise ContractError(f"{cls.__name__}: found no source code, wanted a class in a file: {error}") from error
    (definition,) = ast.parse(textwrap.dedent(source)).body
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    return [
        statement.target.id
        for statement, below in pairwise(body)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    ]


def _written_docstring(cls: type) -> str:
    """Return the class's docstring, empty for the one that @dataclass makes up: its name and fields."""
    found = inspect.getdoc(cls) or ""
    return "" if found.startswith(f"{cls.__name__}(") else found


def _name(config: object) -> str:
    return type(config).__name__
