"""HTML of what may be anything: texts, names and numbers, escaped, and tables of them."""

import html
import re
from collections.abc import Iterable, Sequence

from shards.screen.names import escape

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
    """A table with a first row of names; a number is set to the right."""
    lines = ['<div class="wide"><table>']
    lines.append("<tr>" + "".join(f'<th scope="col">{show(name)}</th>' for name in head) + "</tr>")
    lines += ("<tr>" + "".join(map(make_cell, row)) + "</tr>" for row in rows)
    return "\n".join([*lines, "</table></div>"])


def make_cell(content: object) -> str:
    """A cell of a table."""
    if isinstance(content, int | float):
        return f'<td class="number">{content:,}</td>'
    return f"<td>{show(content)}</td>"


def fold(summary: str, content: str) -> str:
    """What is only shown when it is asked for."""
    return f"<details><summary>{show(summary)}</summary>\n{content}\n</details>"
