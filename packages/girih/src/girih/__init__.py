"""3D medical object detection with pre-training: from scans to a scored detector.

Every command is a frozen dataclass with a `run()`, importable from `girih.commands.<name>`; importing `girih` itself
imports nothing heavy.
"""

from importlib.metadata import version

__version__ = version("girih")
__all__ = ["__version__"]
