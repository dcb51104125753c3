"""Prompts read together, each once and all in pieces, before their texts begin."""

from collections.abc import Sequence

from torch import Tensor

from model.decode.predictor import Predictor

Prompt = tuple[int, ...]


class Reading:
    """Different prompts on their way into a cache of their own, one row each.

    Shorter ones are padded behind their end, where nothing that counts ever looks.
    """

    def __init__(self, predictor: Predictor, prompts: Sequence[Prompt]) -> None:
        self._predictor = predictor
        self._rows = {prompt: row for row, prompt in enumerate(prompts)}
        self._longest = max(map(len, prompts))
        self._num_read = 0
        self._logits: dict[int, Tensor] = {}
        self.cache = predictor.allocate(len(prompts), self._longest)

    def step(self, max_tokens: int) -> bool:
        """Read at most so many tokens, but at least one of each prompt; whether all is read."""
        start = self._num_read
        size = min(max(1, max_tokens // len(self._rows)), self._longest - start)
        if self._predictor.reads_whole:
            size = self._longest
        tokens, places, ended = [], [], []
        for prompt, row in self._rows.items():
            piece = prompt[start : start + size]
            tokens.append([*piece, *[0] * (size - len(piece))])
            if start < len(prompt) <= start + size:
                ended.append(row)
                places.append(row * size + len(prompt) - 1 - start)
        logits = self._predictor.predict(tokens, self.cache, places)
        self._logits |= zip(ended, logits, strict=True)
        self._num_read += size
        if self._num_read < self._longest:
            return False
        self.cache.set_lengths([len(prompt) for prompt in self._rows])
        return True

    def find(self, prompt: Prompt) -> tuple[int, Tensor]:
        """A prompt's row in the cache, and the logits (V,) after it, once all is read."""
        row = self._rows[prompt]
        return row, self._logits[row]


def choose_together(prompts: Sequence[Prompt], max_tokens: int) -> int:
    """How many prompts from the first on to read together, so that padding stays below a half.

    Padding included, they are at most `max_tokens` tokens; the first is always taken.
    Equal prompts are one.

    >>> choose_together([(1, 2), (1, 2), (3, 4), (1, 2, 3, 4, 5, 6, 7, 8, 9)], max_tokens=100)
    3
    """
    together: set[Prompt] = set()
    longest = num_tokens = 0
    for number, prompt in enumerate(prompts):
        if prompt in together:
            continue
        longest, num_tokens = max(longest, len(prompt)), num_tokens + len(prompt)
        padded = longest * (len(together) + 1)
        if together and padded > min(max_tokens, 2 * num_tokens):
            return number
        together.add(prompt)
    return len(prompts)
