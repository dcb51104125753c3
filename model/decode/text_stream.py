"""Turns the tokens of one sequence into text as they come, and ends it at a stop string."""

import copy
import re
from collections.abc import Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A token that spells one byte, in SentencePiece's vocabularies.
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


class TextStream:
    """The text of a growing row of tokens, in pieces that are never taken back.

    What the whole row decodes to, after what the `context`, the tokens before it, decodes to: a
    decoder may leave out a space, but only where a text begins.

    Only what a later token may change is held back: bytes of an unfinished character, and an ending
    that may become a stop string. Stop strings are found in the text, wherever its tokens begin and
    end; the text ends before the first one to be completed.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str] = (), context: Sequence[int] = ()
    ) -> None:
        self.stopped = False  # Whether a stop string was found. Nothing is returned after it.
        self._tokenizer = tokenizer
        self._stops = stops
        # Those that what comes is decoded with: the last one whose text is whole, and all after it.
        self._tokens = list(context)
        self._num_decoded = len(self._spell())  # How many of their characters are known already.
        self._held = ""  # The ending that may become a stop string.

    def branch(self) -> "TextStream":
        """A stream that has come as far, and goes on by itself."""
        other = copy.copy(self)
        other._tokens = self._tokens.copy()
        return other

    def push(self, token: int) -> str:
        """Add a token; return the text that it makes certain."""
        self._tokens.append(token)
        return self._release(self._decode(final=False), final=False)

    def finish(self) -> str:
        """Return what was held back; no token follows."""
        return self._release(self._decode(final=True), final=True)

    def _decode(self, final: bool) -> str:
        """The new characters, up to where an unfinished one may begin.

        Byte-level tokens spell bytes, and an unfinished character decodes to U+FFFD. Byte tokens
        in a row decode together: to their text, or if it is not UTF-8 each of them to U+FFFD.
        """
        if not final and self._is_open(self._tokens[-1]):
            return ""
        new = self._spell()[self._num_decoded :]
        certain = new if final else new.rstrip(REPLACEMENT)
        self._num_decoded += len(certain)
        if certain == new:
            self._forget()
        return certain

    def _forget(self) -> None:
        """Keep only the last token: what follows it is not where a text begins.

        A token that alone decodes to nothing may be no token at all to the decoder.
        """
        if last := self._spell(-1):
            self._tokens, self._num_decoded = self._tokens[-1:], len(last)

    def _spell(self, start: int = 0) -> str:
        """What the tokens from `start` on decode to."""
        text: str = self._tokenizer.decode(self._tokens[start:], skip_special_tokens=False)
        return text

    def _is_open(self, token: int) -> bool:
        """Whether a row of byte tokens may go on after it; ids that stand for nothing end none."""
        spelled = self._tokenizer.id_to_token(token)
        return spelled is None or BYTE_TOKEN.fullmatch(spelled) is not None

    def _release(self, text: str, final: bool) -> str:
        """Add decoded text; return what can no longer be part of a stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [
            (start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0
        ]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        num_held = 0 if final else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`, short of all of it.

    >>> _overlap("one, tw", "two"), _overlap("aab", "abab"), _overlap("end", "two")
    (2, 2, 0)
    """
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
