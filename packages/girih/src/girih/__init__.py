"""3D medical object detection with pre-training: from scans to a scored detector.

Every command is a frozen dataclass with a `run()`, importable from `girih.commands.<name>`; importing `girih` itself
imports nothing heavy.
"""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("girih")
    raise AttributeError(f"module 'girih' has no attribute {name!r}")
