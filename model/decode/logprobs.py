"""Log-probabilities of tokens: those of the model, before any setting changes what is drawn."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.decode.largest import rank_largest


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its log-probability, and the likeliest tokens in its place with theirs."""

    token: int
    # The natural logarithm; None for the first token of a text, which nothing predicts.
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...] = ()  # Ids, likeliest first.


@torch.inference_mode()
def measure_token(logits: Tensor, token: int, num_alternatives: int) -> TokenLogprob:
    """The log-probability of a token from its place's logits (V,): their log-softmax in fp32.

    As OpenAI's API and vLLM give it, it is that of the raw logits: temperature, penalties and what
    top-k and the like remove play no part.
    """
    logprobs = logits.float().log_softmax(-1)
    values, tokens = rank_largest(logprobs[None], min(num_alternatives, len(logprobs)))
    alternatives = tuple(zip(tokens[0].tolist(), values[0].tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), alternatives)
