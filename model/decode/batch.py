"""Texts that are written together: they join, grow by a token a step, and leave between steps.

One or many, for a command or for a server: this is how every text is written. Prompts are read
several at a time and in pieces, so that a long one does not keep the others waiting. A text depends
on its prompt, its settings and its seed, not on the others (except for rounding: other sizes are
summed in another order, which can tip a near-even choice).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from model.decode.draft import Draft
from model.decode.predictor import Predictor
from model.decode.reading import Reading, choose_together
from model.decode.sampler import choose_tokens

READ_TOKENS = 2048
# Room for a row is rounded up to this many tokens, so that memory seldom has to grow.
TOKENS_MULTIPLE = 64
Pieces = list[tuple[Draft, str]]


class Batch:
    """Texts being written; row b of the cache holds all tokens of drafts[b] but the last.

    At most `read_tokens` tokens of prompts, padding included, are read in a step.
    """

    def __init__(self, predictor: Predictor, read_tokens: int = READ_TOKENS) -> None:
        self.drafts: list[Draft] = []
        self._predictor = predictor
        self._read_tokens = read_tokens
        self._waiting: list[Draft] = []
        self._being_read: list[Draft] = []
        self._reading: Reading | None = None
        self._cache = predictor.allocate(0, 0)

    def __len__(self) -> int:
        """How many texts there are, those whose prompts are not read yet included."""
        return len(self.drafts) + len(self._being_read) + len(self._waiting)

    def join(self, drafts: Iterable[Draft]) -> None:
        """Add texts; their prompts are read by the next steps, in this order."""
        self._waiting.extend(drafts)

    def leave(self, draft: Draft) -> None:
        """Give a text up, wherever it is."""
        if draft in self.drafts:
            self._remove(self.drafts.index(draft))
        else:
            (self._waiting if draft in self._waiting else self._being_read).remove(draft)

    def step(self) -> Pieces:
        """A token more for every text whose prompt has been read; what became certain of each.

        Texts that have ended, by their `finish_reason`, have left; they are returned even where
        their last piece is empty. Raises ValueError if the model's logits are not finite.
        """
        pieces = self._write() if self.drafts else []
        if self._reading is None and self._waiting:
            self._reading = self._open_reading()
        if self._reading is not None and self._reading.step(self._read_tokens):
            pieces += self._begin(self._reading)
            self._reading = None
        return [(draft, piece) for draft, piece in pieces if piece or draft.finish_reason]

    def _open_reading(self) -> Reading:
        """Begin with the prompts at the front, as many as can well be read together."""
        prompts = [tuple(draft.tokens) for draft in self._waiting]
        reads_whole = self._predictor.reads_whole
        num_together = 1 if reads_whole else choose_together(prompts, self._read_tokens)
        self._being_read = self._waiting[:num_together]
        del self._waiting[:num_together]
        return Reading(self._predictor, [*dict.fromkeys(prompts[:num_together])])

    def _begin(self, reading: Reading) -> Pieces:
        """The first tokens of the texts whose prompts have been read."""
        drafts, self._being_read = self._being_read, []
        if not drafts:
            return []
        found = [reading.find(tuple(draft.tokens)) for draft in drafts]
        pieces = self._add(torch.stack([logits for _, logits in found]), drafts)
        going_on = [
            (draft, row)
            for draft, (row, _) in zip(drafts, found, strict=True)
            if draft.finish_reason is None
        ]
        longest = max((draft.limit for draft, _ in going_on), default=0)
        num_tokens = -(-longest // TOKENS_MULTIPLE) * TOKENS_MULTIPLE
        self._cache.make_room(len(self.drafts) + len(going_on), num_tokens)
        for draft, row in going_on:
            self._cache.insert(reading.cache, row)
            self.drafts.append(draft)
        return pieces

    def _write(self) -> Pieces:
        """A token more for every text: or several, if there is only one and they can be guessed."""
        drafts = [*self.drafts]
        guess = drafts[0].guess() if len(drafts) == 1 else []
        if guess:
            pieces = self._check(drafts[0], guess)
        else:
            logits = self._predictor.predict([draft.tokens[-1:] for draft in drafts], self._cache)
            pieces = self._add(logits, drafts)
        for row in reversed(range(len(drafts))):
            if drafts[row].finish_reason:
                self._remove(row)
        return pieces

    def _check(self, draft: Draft, guess: Sequence[int]) -> Pieces:
        """Read the guessed tokens at once, and keep as many as would have been chosen."""
        tokens = [draft.tokens[-1], *guess]
        every = range(len(tokens))
        logits = self._predictor.predict([tokens], self._cache, every)
        pieces: Pieces = []
        for place in every:
            pieces += self._add(logits[place : place + 1], [draft])
            if draft.finish_reason or draft.tokens[-1:] != tokens[place + 1 : place + 2]:
                break
        self._cache.set_lengths([len(draft.tokens) - 1])
        return pieces

    def _add(self, logits: Tensor, drafts: Sequence[Draft]) -> Pieces:
        tokens = choose_tokens(logits, drafts)
        return [(draft, draft.add(token)) for draft, token in zip(drafts, tokens, strict=True)]

    def _remove(self, row: int) -> None:
        self._cache.remove(row)
        last = self.drafts.pop()
        if row < len(self.drafts):
            self.drafts[row] = last
