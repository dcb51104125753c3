"""HTML of what may be anything: texts, names and numbers, escaped, and tables of them."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from shards.screen.lines import format_number
from shards.screen.names import escape

NUMBER = ' class="number"'
# Of one text; a log may hold any.
MAX_CHARACTERS = 10_000
# What neither HTML nor XML can hold; shards/screen/names.py escapes the other characters like it.
NO_CHARACTERS = re.compile("[\ufffe\uffff]")


def show(content: object) -> str:
    r"""Anything as text of a page, which gives no orders to a browser.

    >>> show("<script>\x1b[2J")
    '&lt;script&gt;\\x1b[2J'
    """
    text = str(content)
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]} ... ({len(text):,} characters)"
    return html.escape(NO_CHARACTERS.sub("\ufffd", escape(text)))


def make_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a first row of names; a number is set to the right, as is the name above it."""
    rows = [*rows]
    first = rows[0] if rows else head
    names = (
        f'<th scope="col"{NUMBER if is_number(content) else ""}>{show(name)}</th>'
        for name, content in zip(head, first, strict=True)
    )
    lines = ['<div class="wide"><table>', f"<tr>{''.join(names)}</tr>"]
    lines += ("<tr>" + "".join(map(make_cell, row)) + "</tr>" for row in rows)
    return "\n".join([*lines, "</table></div>"])


def make_cell(content: object) -> str:
    """A cell of a table."""
    if not is_number(content):
        return f"<td>{show(content)}</td>"
    return (
        f"<td{NUMBER}>{f'{content:,}' if isinstance(content, int) else format_number(content)}</td>"
    )


def is_number(content: object) -> TypeGuard[int | float]:
    """Whether it is a number and no truth value."""
    return isinstance(content, int | float) and not isinstance(content, bool)


def fold(summary: str, content: str) -> str:
    """What is only shown when it is asked for."""
    return f"<details><summary>{show(summary)}</summary>\n{content}\n</details>"
