"""Turns the tokens of one sequence into text as they come, and ends it at a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of a growing row of tokens, in pieces that are never taken back.

    Only what a later token may change is held back: bytes of an unfinished character, and an ending
    that may become a stop string. Stop strings are found in the text, wherever its tokens begin and
    end; the text ends before the first one to be completed.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.stopped = False  # Whether a stop string was found. Nothing is returned after it.
        self._tokenizer = tokenizer
        self._stops = stops
        self._tokens: list[int] = []  # Since the last token that ended with a whole character,
        self._num_decoded = 0  # and how many of their characters are decoded already.
        self._held = ""  # The ending that may become a stop string.

    def push(self, token: int) -> str:
        """Add a token; return the text that it makes certain."""
        self._tokens.append(token)
        return self._release(self._decode(final=False), final=False)

    def finish(self) -> str:
        """Return what was held back; no token follows."""
        return self._release(self._decode(final=True), final=True)

    def _decode(self, final: bool) -> str:
        """The new characters, up to where an unfinished one may begin.

        Byte-level tokens spell bytes, and an unfinished character decodes to U+FFFD.
        """
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=False)
        end = len(text if final else text.rstrip(REPLACEMENT))
        new = text[self._num_decoded : end]
        self._num_decoded = end
        if end == len(text):
            self._tokens, self._num_decoded = [], 0
        return new

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
