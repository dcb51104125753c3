"""Names and texts from data as people may read and paste them: escaped, and quoted for a shell.

A name, a key of JSON, a document: none of them may give orders to a terminal, look like a line of
ours, or end a word of a command that is printed to be pasted.
"""

import re
import shlex
from pathlib import Path

# What a terminal obeys instead of showing it (C0, DEL, C1), other ends of lines, marks that turn
# the direction of writing, and surrogates. All else that cannot be seen belongs to some language.
CONTROLS = re.compile(
    "(?!\r\n)[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape(text: str) -> str:
    r"""A text of several lines that a terminal only shows; line ends and tabs are left.

    >>> escape("a\x1b[2J\tb\r\nc\rd")
    'a\\x1b[2J\tb\r\nc\\rd'
    """
    return CONTROLS.sub(lambda found: escape_character(found[0]), text)


def escape_line(text: str) -> str:
    r"""A text as one line in which every character can be seen.

    >>> escape_line("two\nlines, caf\udce9")
    'two\\nlines, caf\\xe9'
    """
    return text if text.isprintable() else "".join(map(escape_character, text))


def escape_character(character: str) -> str:
    r"""A character, or its escape if it cannot be seen or is only a piece of one.

    >>> escape_character("a"), escape_character("\t"), escape_character("\u200b")
    ('a', '\\t', '\\u200b')
    """
    if "\udc80" <= character <= "\udcff":  # A byte that is not UTF-8, from surrogateescape.
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def quote(name: str | Path) -> str:
    r"""A file's name, or another word, as it can be pasted into bash or zsh.

    >>> quote("shards"), quote("my shards"), quote("-x"), quote("a\nb")
    ('shards', "'my shards'", './-x', "$'a\\x0ab'")
    """
    word = str(name)
    if word.startswith("-"):
        word = f"./{word}"
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(spell_bytes, word)) + "'"


def advise_verify(folder: Path) -> str:
    """What an error about a damaged file of a set ends with.

    >>> advise_verify(Path("my shards"))
    "see what else is damaged with: velocity shards verify 'my shards'"
    """
    return f"see what else is damaged with: velocity shards verify {quote(folder)}"


def spell_bytes(character: str) -> str:
    r"""A character inside $'...', where one that cannot be seen is its bytes."""
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    is_byte = "\udc80" <= character <= "\udcff"
    raw = character.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)
