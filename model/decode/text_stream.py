"""Turns the tokens of one sequence into text as they come, and ends it at a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text that a growing row of tokens spells, in pieces that are never taken back.

    Held back is only what a next token may change: bytes that are not yet a whole character, and
    an ending that may become a stop string. Stop strings are sought in the text, however tokens
    cut it; the first one to be complete ends the text before it.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.stopped = False  # Whether a stop string has come. Nothing is shown after it.
        self._tokenizer = tokenizer
        self._stops = stops
        self._tokens: list[int] = []  # Since the last token that ended with a whole character,
        self._num_decoded = 0  # and how many characters of theirs are known already.
        self._held = ""  # The ending that may become a stop string.

    def push(self, token: int) -> str:
        """Add a token; return the text that has become certain."""
        self._tokens.append(token)
        return self._release(self._decode(final=False), final=False)

    def finish(self) -> str:
        """Return what was held back, as no token follows."""
        return self._release(self._decode(final=True), final=True)

    def _decode(self, final: bool) -> str:
        """The characters that are new, up to where unfinished bytes may begin.

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
        """Add decoded text; return what no stop string can reach any more."""
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
    """How many of the last characters of `text` are the first of `stop`, but not all of it.

    >>> _overlap("one, tw", "two"), _overlap("aab", "abab"), _overlap("end", "two")
    (2, 2, 0)
    """
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
