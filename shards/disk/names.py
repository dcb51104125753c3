"""Names and texts from data as people may read and paste them: escaped, and quoted for a shell.

A name, a key of JSON, a document: none of them may give orders to a terminal, look like a line of
ours, or end a word of a command that is printed to be pasted.
"""

import re
import shlex
from pathlib import Path

# What a terminal obeys instead of showing it (C0, DEL, C1), other ends of lines, marks that turn
# the direction of writing, and surrogates, which stand for bytes that are not UTF-8.
CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
IN_LINE = re.compile(f"[{CONTROLS}\t\n]")
IN_TEXT = re.compile(f"(?!\r\n)[{CONTROLS}]")


def escape(text: str) -> str:
    r"""A text of several lines that a terminal only shows; line ends and tabs are left.

    >>> escape("a\x1b[2J\tb\r\nc\rd")
    'a\\x1b[2J\tb\r\nc\\rd'
    """
    return IN_TEXT.sub(_spell, text)


def escape_line(text: str) -> str:
    r"""A text as one line that a terminal only shows.

    >>> escape_line("two\nlines, caf\udce9")
    'two\\nlines, caf\\xe9'
    """
    return IN_LINE.sub(_spell, text)


def quote(name: str | Path) -> str:
    r"""A file's name, or another word, as it can be pasted into bash or zsh.

    >>> quote("shards"), quote("my shards"), quote("-x"), quote("a\nb")
    ('shards', "'my shards'", './-x', "$'a\\nb'")
    """
    word = str(name)
    if word.startswith("-"):
        word = f"./{word}"
    if not IN_LINE.search(word):
        return shlex.quote(word)
    return "$'" + "".join(_spell_bytes(character) for character in word) + "'"


def _spell(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # A byte that is not UTF-8.
        return f"\\x{code - 0xDC00:02x}"
    return repr(found[0])[1:-1]


def _spell_bytes(character: str) -> str:
    """A character inside $'...'."""
    if character in "\\'":
        return f"\\{character}"
    if not IN_LINE.search(character):
        return character
    if character in "\t\n\r":
        return repr(character)[1:-1]
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
