"""The pre-training methods that are installed, ours and other people's, found by entry point."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from girih_ssl.interfaces import ObjectiveConfig

GROUP = "girih.objectives"


class PluginError(ValueError):
    """An installed objective cannot be used; the message names its distribution."""


def objectives() -> "Objectives":
    """Return the installed objectives: from name to config class, in the order of the names.

    Looking at the names imports nothing. A class is imported when it is asked for, so a broken plug-in is in nobody's
    way but its own: `objectives()["broken"]` raises PluginError.

    Raises:
        ValueError: two distributions claim the same name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        rival = found.setdefault(entry.name, entry)
        if rival is not entry:
            raise ValueError(
                f"objective {entry.name!r}: claimed by the distributions {_distribution(rival)} and "
                f"{_distribution(entry)}; wanted one: uninstall the other"
            )
    return Objectives(found)


class Objectives(Mapping[str, type[ObjectiveConfig]]):
    """The installed objectives by name, imported one at a time."""

    def __init__(self, entries: dict[str, EntryPoint]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> type[ObjectiveConfig]:
        """Import and return a config class.

        Raises:
            KeyError: there is no objective of that name; the message names those there are.
            PluginError: it cannot be imported, or is no config class.
        """
        if name not in self._entries:
            raise KeyError(f"objective {name!r}: is not installed; found {', '.join(self._entries) or 'none'}")
        return _load(self._entries[name])

    def __contains__(self, name: object) -> bool:  # the inherited one would import
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"objectives({', '.join(self._entries)})"


def _load(entry: EntryPoint) -> type[ObjectiveConfig]:
    where = f"objective {entry.name!r} of the distribution {_distribution(entry)}"
    try:
        config = entry.load()
    except Exception as error:  # an import runs foreign code, which may fail in any way; its error is kept as the cause
        raise PluginError(f"{where}: cannot import {entry.value}: {type(error).__name__}: {error}") from error
    if not (isinstance(config, type) and is_dataclass(config) and _is_frozen(config) and hasattr(config, "build")):
        raise PluginError(f"{where}: found {config!r}, wanted a frozen dataclass with build(parts)")
    return cast("type[ObjectiveConfig]", config)


def _is_frozen(config: Any) -> bool:
    return bool(config.__dataclass_params__.frozen)


def _distribution(entry: EntryPoint) -> str:
    return "(unknown)" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
