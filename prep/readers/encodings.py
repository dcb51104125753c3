"""Bytes as text: UTF-8, with U+FFFD for what is invalid.

UTF-16 and UTF-32 are known by their first bytes, and refused with what converts them.
"""

import codecs
import re
import unicodedata
from collections import Counter
from pathlib import Path

from prep.readers.documents import BadDocument

UTF8_MARK = codecs.BOM_UTF8
# Longest first: UTF-16's little-endian mark begins UTF-32's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
HEAD_BYTES = 4096
_MIN_CHARACTERS = 2
_SPACES = "\t\n\r\f\v"
# The least share of characters from one alphabet and ASCII together, in any text of letters.
_ONE_ALPHABET = 0.8
_ASCII, _EAST_ASIAN = 0, -1
_SURROGATES = re.compile("[\ud800-\udfff]")


def repair(text: str) -> tuple[str, bool]:
    r"""Replace each lone surrogate by U+FFFD; also says whether there was one.

    >>> repair("\ud83d!") == ("\ufffd!", True)
    True
    """
    if text.isascii():
        return text, False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text), True
    return text, False


def decode(data: bytes) -> tuple[str, bool]:
    r"""Decode UTF-8, with U+FFFD for what is invalid; also says whether anything was.

    >>> decode(b"caf\xe9") == ("caf\ufffd", True)
    True
    """
    try:
        return data.decode("utf-8"), False
    except UnicodeDecodeError:
        return data.decode("utf-8", errors="replace"), True


def refuse_wide(head: bytes, path: Path) -> None:
    """BadDocument naming the encoding if a file's first bytes are UTF-16 or UTF-32."""
    name = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    name = name or guess_wide(head[:HEAD_BYTES])
    if name:
        raise BadDocument(
            f"{path}: is in {name}; convert it with iconv -f {name} -t UTF-8", f"in {name}"
        )


def guess_wide(head: bytes) -> str | None:
    r"""The encoding, if these bytes are UTF-16 or UTF-32 without a byte order mark; else None.

    In both, English text has a NUL beside every letter, and other text beside every space. A NUL
    in UTF-8 is a character like any other, and alone says nothing.

    >>> guess_wide("some text".encode("utf-16-be")), guess_wide(b"some\0 text\0")
    ('UTF-16BE', None)
    """
    if b"\0" not in head:
        return None
    for name in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"):
        try:
            text = codecs.getincrementaldecoder(name)().decode(head)
        except UnicodeDecodeError:
            continue
        if len(text) >= _MIN_CHARACTERS and _is_text(text, head):
            return name
    return None


def _is_text(text: str, head: bytes) -> bool:
    """Whether characters are those of a text: assigned, no controls, most of one alphabet.

    Any two ASCII letters are an East Asian character, so that alphabet counts only if the bytes
    are not UTF-8.
    """
    if any(unicodedata.category(c) in ("Cc", "Cn", "Co") and c not in _SPACES for c in text):
        return False
    counts = Counter(_name_alphabet(ord(character)) for character in text)
    num_ascii = counts.pop(_ASCII, 0)
    [(alphabet, count)] = counts.most_common(1) or [(_ASCII, 0)]
    if alphabet == _EAST_ASIAN and _is_utf8(head):
        count = 0
    return num_ascii > 0 and num_ascii + count >= _ONE_ALPHABET * len(text)


def _name_alphabet(code: int) -> int:
    """A number for the alphabet, about, that a character is of."""
    if code < 0x80:
        return _ASCII
    east_asian = ((0x3000, 0xA000), (0xAC00, 0xD7B0), (0xFF00, 0xFFF0), (0x20000, 0x32000))
    return _EAST_ASIAN if any(a <= code < b for a, b in east_asian) else 1 + code // 256


def _is_utf8(head: bytes) -> bool:
    """Whether bytes are UTF-8, the last character of which may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True
