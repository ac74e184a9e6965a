"""What every detector of this package promises, as named checks; run them on your own.

    from girih_detectors.testing import check_detector
    check_detector(lambda pyramid, classes: MyDetector(pyramid, classes=classes))

Each check builds a fresh detector on a tiny pyramid and raises AssertionError, led by its own name. All of them take
about half a minute on one core.
"""

from .contract import CHECKS, check_detector
from .subject import Make
from .tiny import CLASSES, TinyPyramid, toy_batch

__all__ = ["CHECKS", "CLASSES", "Make", "TinyPyramid", "check_detector", "toy_batch"]
