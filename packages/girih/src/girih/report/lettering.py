"""Names and sentences in pictures: as long as their place, in letters that the font has."""

from bisect import bisect_right
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

POINTS_PER_INCH = 72.0


def drawable(text: str) -> str:
    """Return a text in which every letter that matplotlib's font lacks is written as its number in Unicode."""
    letters = _letters()
    return "".join(letter if ord(letter) in letters else f"\\u{ord(letter):04x}" for letter in text)


def fitted(text: str, *, size: float, width_inch: float, lines: int) -> str:
    """Return a text of `size` points broken into at most so many lines; what is too long ends in an ellipsis."""
    font, width, rest = FontProperties(size=size), width_inch * POINTS_PER_INCH, drawable(text)
    made: list[str] = []
    while rest and len(made) < lines:
        n = max(1, _letters_within(rest, font, width))
        space = rest.rfind(" ", 0, n + 1)
        if n < len(rest) and space > 0 and len(made) + 1 < lines:
            n = space
        made.append(rest[:n].rstrip())
        rest = rest[n:].lstrip()
    if rest:
        made[-1] = made[-1][: _letters_within(f"…{made[-1]}", font, width) - 1] + "…"
    return "\n".join(made)


def _letters_within(text: str, font: FontProperties, width: float) -> int:
    def length(n: int) -> float:
        wide: float = text_to_path.get_text_width_height_descent(text[:n], font, ismath=False)[0]
        return wide

    return bisect_right(range(1, len(text) + 1), width, key=length)


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())
