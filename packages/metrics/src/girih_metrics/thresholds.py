"""Thresholds that mean what they say: 0.3 is 0.3, not 0.30000000000000004."""

from decimal import Decimal


def iou_range(start: float | int, stop: float | int, step: float | int) -> tuple[float, ...]:
    """Return start, start + step, ... up to and including stop, each the float nearest to its decimal.

    `numpy.linspace(0.1, 0.5, 9)` holds 0.30000000000000004, which an IoU of exactly 3/10 does not reach.

    Raises:
        ValueError: a step that is not positive, or stop below start.
    """
    first, last, width = (Decimal(repr(float(value))) for value in (start, stop, step))
    if width <= 0 or last < first:
        raise ValueError(f"start, stop, step are {start}, {stop}, {step}; wanted start <= stop and a positive step")
    return tuple(float(first + k * width) for k in range(int((last - first) / width) + 1))
