"""The log-probabilities of a given text's tokens, each after those before it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.decode.largest import rank_largest
from model.decode.logprobs import TokenLogprob
from model.decode.predictor import Predictor

# Tokens that are read at once where nothing else waits, and those whose logits are in memory
# together: nothing but the cache becomes larger with the text.
PIECE, CHUNK = 256, 64


class Scoring:
    """A text on its way through the model, in pieces; `scored` has the tokens so far.

    Each with its log-probability and the likeliest tokens in its place with theirs: those of
    `measure_token`. Nothing predicts the first token, which has None. Raises ValueError for more
    tokens than the model's context holds.
    """

    def __init__(
        self, predictor: Predictor, tokens: Sequence[int], num_alternatives: int = 0
    ) -> None:
        context = predictor.model.config.context
        if len(tokens) > context:
            raise ValueError(
                f"the text has {len(tokens):,} tokens, the model's context is {context:,}; score "
                "it in parts"
            )
        self.scored = [TokenLogprob(tokens[0], None)]
        # Of the token to come (1, num_words) in fp32, once all is read.
        self.logits = torch.empty(0)
        self._predictor = predictor
        self._tokens = torch.tensor(tokens, device=predictor.model.lm_head.weight.device)
        self._num_alternatives = min(num_alternatives, predictor.num_words)
        self._cache = predictor.allocate(1, len(tokens))

    @property
    def is_done(self) -> bool:
        """Whether all is read."""
        return self._cache.lengths == [len(self._tokens)]

    @torch.inference_mode()
    def step(self, max_tokens: int) -> int:
        """Read at most so many tokens, unless all are; returns how many that were."""
        model, [start] = self._predictor.model, self._cache.lengths
        stop = len(self._tokens) if self._predictor.reads_whole else start + max_tokens
        tokens = self._tokens[start:stop]
        hidden = model.model(tokens[None], self._cache)[0]
        self._cache.set_lengths([start + len(tokens)])
        targets = self._tokens[start + 1 : start + len(tokens) + 1]
        for first in range(0, len(hidden), CHUNK):
            logits = model.lm_head(hidden[first : first + CHUNK])
            logits = logits[:, : self._predictor.num_words].float()
            self._add(logits, targets[first : first + CHUNK])
        self.logits = logits[-1:]
        return len(tokens)

    def _add(self, logits: Tensor, targets: Tensor) -> None:
        """Add these tokens, each of which came after its row of logits."""
        logprobs = logits[: len(targets)].log_softmax(-1)
        own = logprobs.gather(1, targets[:, None]).squeeze(1)
        values, ids = rank_largest(logprobs, self._num_alternatives)
        for token, logprob, *best in zip(
            targets.tolist(), own.tolist(), ids.tolist(), values.tolist(), strict=True
        ):
            self.scored.append(TokenLogprob(token, logprob, tuple(zip(*best, strict=True))))
