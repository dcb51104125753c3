"""How likely a given text is to the model, token by token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.decode.generator import Generator
from model.decode.logprobs import TokenLogprob

# Their logits are computed at a time: those of a whole prompt would take the memory of a model.
POSITIONS = 64


@torch.inference_mode()
def score_prompt(
    generator: Generator, tokens: Sequence[int], num_alternatives: int
) -> tuple[list[TokenLogprob], Tensor]:
    """Each token's log-probability after those before it, and the logits (1, V) of the next one.

    The first token has none: nothing predicts it.
    """
    model, num_words = generator.model, generator.num_words
    hidden = model.model(torch.tensor([tokens], device=model.lm_head.weight.device))[0]  # (T, D)
    scores = [TokenLogprob(tokens[0], None)]
    for first in range(0, len(tokens) - 1, POSITIONS):
        targets = tokens[first + 1 : first + 1 + POSITIONS]
        logits = model.lm_head(hidden[first : first + len(targets)])[:, :num_words]
        logprobs = logits.float().log_softmax(-1)
        own = logprobs.gather(1, torch.tensor(targets, device=hidden.device)[:, None])
        best = logprobs.topk(min(num_alternatives, num_words))
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        for token, logprob, (ids, values) in zip(targets, own[:, 0].tolist(), rows, strict=True):
            scores.append(TokenLogprob(token, logprob, tuple(zip(ids, values, strict=True))))
    return scores, model.lm_head(hidden[-1:])[:, :num_words].float()
