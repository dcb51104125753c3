"""Generated text on its way out: every character arrives, and none commands a terminal."""

import io
import re
from collections.abc import Callable
from typing import TextIO

# C0 but for tab and newline, DEL, and C1: what a terminal obeys instead of showing it.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def open_output(stream: TextIO) -> Callable[[str], None]:
    """A function that writes text to `stream` at once.

    A terminal shows what it cannot encode, and control characters, as escapes. A file or a pipe
    gets the text itself, in UTF-8.
    """
    on_terminal = stream.isatty()
    if isinstance(stream, io.TextIOWrapper):
        if on_terminal:
            stream.reconfigure(errors="backslashreplace")
        else:
            stream.reconfigure(encoding="utf-8")

    def show(text: str) -> None:
        stream.write(escape_controls(text) if on_terminal else text)
        stream.flush()

    return show


def escape_controls(text: str) -> str:
    """The text with control characters as escapes; line ends and tabs stay.

    >>> print(escape_controls("a\\x1b[2Jb"))
    a\\x1b[2Jb
    """
    return CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
