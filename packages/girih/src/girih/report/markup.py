"""Pieces of a page as HTML, everything escaped, and the page around them: one file that loads nothing from outside."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'"
"""The browser itself refuses anything from outside, and every script but the one whose hash is added."""


def page(title: str, sections: Iterable[str], *, style: str, script: str = "") -> str:
    """Return a whole page; `script` runs at its end, and no other does."""
    policy = POLICY
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        script = f"<script>{script}</script>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>\n"
        + "\n".join(sections)
        + f"\n</main>{script}</body></html>\n"
    )


def package_text(name: str) -> str:
    """Return a style or script that lies beside this module."""
    return files("girih.report").joinpath(name).read_text(encoding="utf-8")


def section(heading: str, body: str) -> str:
    """Return a part of a page."""
    return f"<section><h2>{escape(heading)}</h2>{body}</section>"


def soft(text: str) -> str:
    """Return a paragraph that explains."""
    return f'<p class="soft">{escape(text)}</p>'


def items(texts: Iterable[str]) -> str:
    """Return a list."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "", *, words: bool = False) -> str:
    """Return a table whose first column names the rows; `words` lets long cells wrap."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(f"<tr>{_first_cell(row[0])}{''.join(_cell(item) for item in row[1:])}</tr>" for row in rows)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    content = f"{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="{"words" if words else "numbers"}">{content}</table></div>'


def plots(named: Iterable[tuple[str, bytes]], what: str) -> str:
    """Return named PNG pictures side by side."""
    figures = "".join(
        f'<figure><img src="{data_uri(png)}" alt="{escape(f"{name}: {what}")}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, png in named
    )
    return f'<div class="plots">{figures}</div>'


def data_uri(png: bytes) -> str:
    """Return a PNG as the address of itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _first_cell(item: object) -> str:
    return f'<th scope="row">{escape(str(item))}</th>'


def _cell(item: object) -> str:
    return f"<td>{escape(str(item))}</td>"
