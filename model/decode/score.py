"""The log-probabilities of a given text's tokens, each after those before it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from model.cache import allocate_cache
from model.decode.largest import rank_largest
from model.decode.logprobs import TokenLogprob
from model.transformer import Transformer

# Tokens that are read at once, and of them those whose logits are in memory together: nothing but
# the cache becomes larger with the text.
PIECE, CHUNK = 256, 64


def score_tokens(
    model: Transformer, tokens: Sequence[int], num_words: int, num_alternatives: int = 0
) -> tuple[list[TokenLogprob], Tensor]:
    """The log-probability of each token, and the likeliest tokens in its place with theirs.

    They are those of `measure_token`, over the first `num_words` logits. Nothing predicts the first
    token, which has None. Beside them, the logits (1, num_words) of the token to come. Raises
    ValueError for more tokens than the model's context holds.
    """
    whole = list[TokenLogprob]()
    for piece in score_in_pieces(model, tokens, num_words, num_alternatives):
        whole += piece[0]
    return whole, piece[1]


@torch.inference_mode()
def score_in_pieces(
    model: Transformer, tokens: Sequence[int], num_words: int, num_alternatives: int = 0
) -> Iterator[tuple[list[TokenLogprob], Tensor]]:
    """The same, a piece of the text after another: others may use the model in between.

    Beside each piece are the logits (1, num_words) of the token behind it.
    """
    context = model.config.context
    if len(tokens) > context:
        raise ValueError(
            f"the text has {len(tokens):,} tokens, the model's context is {context:,}; score it in "
            "parts"
        )
    norm = model.model.norm.weight  # Narrow weights are widened: their dtype says nothing.
    cache = allocate_cache(model.config, 1, len(tokens), norm.device, norm.dtype)
    row = torch.tensor(tokens, device=norm.device)
    # Where its tokens turn by the length of them all, a text is read at once.
    size = len(row) if model.config.rope_type == "dynamic" else PIECE
    scored = [TokenLogprob(tokens[0], None)]
    for first in range(0, len(row), size):
        states = model.model(row[None, first : first + size], cache)[0]
        cache.set_lengths([first + len(states)])
        targets = row[first + 1 : first + 1 + len(states)]
        for start in range(0, len(targets), CHUNK):
            logits = model.lm_head(states[start : start + CHUNK])[:, :num_words]
            scored += _measure(logits, targets[start : start + CHUNK], num_alternatives)
        yield scored, model.lm_head(states[-1:])[:, :num_words].float()
        scored = []


def _measure(logits: Tensor, targets: Tensor, num_alternatives: int) -> Iterator[TokenLogprob]:
    """What `measure_token` says of each target (T,); logits are (T, V), or one row longer."""
    logprobs = logits[: len(targets)].float().log_softmax(-1)
    own = logprobs.gather(1, targets[:, None]).squeeze(1)
    values, ids = rank_largest(logprobs, min(num_alternatives, logprobs.shape[1]))
    for token, logprob, *best in zip(
        targets.tolist(), own.tolist(), ids.tolist(), values.tolist(), strict=True
    ):
        yield TokenLogprob(token, logprob, tuple(zip(*best, strict=True)))
