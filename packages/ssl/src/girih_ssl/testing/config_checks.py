"""Checks of an objective's config: its fields are the command line, its docstrings the help."""

import ast
import dataclasses
import inspect
import re
import textwrap
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints

from girih_ssl.testing.subject import Subject, require

SCALARS = (str, int, float, bool)
SOURCE = re.compile(r"\b(19|20)\d\d\b|arxiv|doi\.org", re.IGNORECASE)


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
    """The config's or the objective's docstring names the paper: a year, an arXiv number or a DOI."""
    docs = [inspect.getdoc(type(subject.config)) or "", inspect.getdoc(type(subject.build())) or ""]
    require(
        any(SOURCE.search(doc) for doc in docs),
        f"neither {_name(subject.config)} nor its objective cites a source in its docstring: found no year, arXiv "
        f"number or DOI; name the paper, such as (He et al. 2022)",
    )


def _fields(subject: Subject) -> tuple["dataclasses.Field[Any]", ...]:
    config: Any = subject.config
    return dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()


def _documented_fields(cls: type) -> list[str]:
    if not dataclasses.is_dataclass(cls):
        return []
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
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


def _name(config: object) -> str:
    return type(config).__name__
