"""The log-probabilities of a given text's tokens, each after those before it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.decode.logprobs import TokenLogprob
from model.transformer import Transformer

# Places whose logits are in memory together.
CHUNK = 64


@torch.inference_mode()
def score_tokens(
    model: Transformer, tokens: Sequence[int], num_words: int, num_alternatives: int = 0
) -> tuple[list[TokenLogprob], Tensor]:
    """The log-probability of each token, and the likeliest tokens in its place with theirs.

    They are those of `measure_token`, over the first `num_words` logits. Nothing predicts the first
    token, which has None. Beside them, the logits (1, num_words) of the token to come. Raises
    ValueError for more tokens than the model's context holds.
    """
    context = model.config.max_position_embeddings
    if len(tokens) > context:
        raise ValueError(
            f"the text has {len(tokens):,} tokens, the model's context is {context:,}; score it in "
            "parts"
        )
    row = torch.tensor(tokens, device=model.lm_head.weight.device)
    scored = [TokenLogprob(tokens[0], None)]
    states = model.model(row[None])[0]
    hidden = states[:-1]
    for first in range(0, len(hidden), CHUNK):
        logits = model.lm_head(hidden[first : first + CHUNK])[:, :num_words]
        logprobs = logits.float().log_softmax(-1)
        targets = row[1:][first : first + CHUNK]
        own = logprobs.gather(1, targets[:, None]).squeeze(1)
        best = logprobs.topk(min(num_alternatives, num_words))
        for token, logprob, ids, values in zip(
            targets.tolist(),
            own.tolist(),
            best.indices.tolist(),
            best.values.tolist(),
            strict=True,
        ):
            alternatives = tuple(zip(ids, values, strict=True))
            scored.append(TokenLogprob(token, logprob, alternatives))
    return scored, model.lm_head(states[-1:])[:, :num_words].float()
