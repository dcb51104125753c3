"""Prompts whose tokens' log-probabilities are wanted: read in pieces, between others' tokens."""

from collections import deque

from torch import Tensor

from model.decode.draft import Draft
from model.decode.logprobs import TokenLogprob
from model.decode.predictor import Predictor
from model.decode.score import Scoring


class Measuring:
    """Drafts whose prompts are measured, one after another."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._drafts = deque[Draft]()
        self._scoring: Scoring | None = None  # Of the first one, once it is begun.

    def join(self, draft: Draft) -> None:
        """Add a draft; it is measured after those that are here."""
        self._drafts.append(draft)

    def leave(self, draft: Draft) -> bool:
        """Give a draft up; False if it is not here."""
        if draft not in self._drafts:
            return False
        if draft is self._drafts[0]:
            self._scoring = None
        self._drafts.remove(draft)
        return True

    def step(self, max_tokens: int) -> list[tuple[Draft, list[TokenLogprob], Tensor]]:
        """Read so many tokens; the drafts that are measured by now, which leave.

        Beside each are its tokens, and the logits (1, V) of the one to come.
        """
        measured = []
        while self._drafts and max_tokens > 0:
            draft = self._drafts[0]
            if self._scoring is None:
                num_alternatives = draft.settings.logprobs or 0
                self._scoring = Scoring(self._predictor, draft.tokens, num_alternatives)
            max_tokens -= self._scoring.step(max_tokens)
            if self._scoring.is_done:
                measured.append((draft, self._scoring.scored, self._scoring.logits))
                self.leave(draft)
        return measured
