"""Chooses the next token from logits, with the same order and definitions as transformers.

    repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw

B rows, V vocabulary, W candidates: the tokens that top-k keeps are sorted and set apart, so
that everything after it works on dozens of numbers instead of the whole vocabulary.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from model.decode.settings import Sampling


@torch.inference_mode()
def choose_tokens(
    logits: Tensor,
    histories: Sequence[Sequence[int]],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> list[int]:
    """The next token of each row, from its logits (B, V) and the tokens it already holds.

    Row b draws from generators[b] alone, so it does not depend on the other rows. Raises
    ValueError if the logits are not finite.
    """
    if not bool(logits.amax().isfinite()):
        raise ValueError(
            "the model's logits are not finite: its training diverged or its weights are damaged; "
            "use an earlier checkpoint"
        )
    logits = penalize_repetition(logits.float(), histories, sampling.repetition_penalty)
    if sampling.is_greedy:
        chosen = logits.argmax(-1)
    else:
        scores, tokens = find_candidates(logits, sampling)
        draws = torch.stack([torch.rand(1, generator=generator) for generator in generators])
        chosen = draw_candidates(scores, tokens, draws.to(logits.device))
    return cast(list[int], chosen.tolist())


def penalize_repetition(
    logits: Tensor, histories: Sequence[Sequence[int]], penalty: float
) -> Tensor:
    """Logits (B, V); those of tokens in a row's history are divided by the penalty, once each.

    Negative logits are multiplied by it instead.
    """
    if penalty == 1:
        return logits
    logits = logits.clone()
    for row, history in zip(logits, histories, strict=True):
        seen = torch.tensor(sorted(set(history)), device=logits.device)
        found = row[seen]
        row[seen] = torch.where(found < 0, found * penalty, found / penalty)
    return _bound(logits)


def find_candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The scores and ids (B, W) of the tokens that may be drawn, highest score first.

    Scores are logits over temperature; a row with fewer than W candidates ends with -inf.
    """
    scores, tokens = _keep_top_k(_bound(logits / sampling.temperature), sampling.top_k or 0)
    if sampling.top_p is not None and sampling.top_p < 1:
        # Summed from the least probable up, as in transformers, so that rounding agrees too.
        rising = torch.softmax(scores, -1).flip(-1).cumsum(-1).flip(-1)
        scores = _remove(scores, rising <= 1 - sampling.top_p)
    if sampling.min_p > 0:
        probs = torch.softmax(scores, -1)
        scores = _remove(scores, probs < sampling.min_p * probs[:, :1])
    return scores, tokens


def draw_candidates(scores: Tensor, tokens: Tensor, draws: Tensor) -> Tensor:
    """The token (B,) at which a row's cumulative probability passes its draw (B, 1).

    `draws` are uniform in [0, 1). If rounding leaves none above, the likeliest is taken.
    """
    rising = torch.softmax(scores, -1).cumsum(-1)
    passed = rising > draws * rising[:, -1:]
    return tokens.gather(1, passed.int().argmax(-1, keepdim=True)).squeeze(1)


def _keep_top_k(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The top_k highest scores of each row and all that tie with the lowest of them, sorted."""
    if not 0 < top_k < scores.shape[-1]:
        return scores.sort(dim=-1, descending=True)
    best = scores.topk(top_k, dim=-1)
    lowest = best.values[:, -1:]
    num_kept = int((scores >= lowest).sum(-1).max())
    if num_kept > top_k:
        best = scores.topk(num_kept, dim=-1)
    return best.values.masked_fill(best.values < lowest, -torch.inf), best.indices


def _bound(scores: Tensor) -> Tensor:
    """The scores with those that overflowed at the ends of their dtype, as infinities make NaN."""
    return scores.nan_to_num()  # A NaN, from 0 divided by a penalty that rounds to 0, becomes 0.


def _remove(scores: Tensor, removed: Tensor) -> Tensor:
    """Scores with -inf where removed; the first of a row, its likeliest, always stays."""
    keeps_first = removed.clone()
    keeps_first[:, 0] = False
    return scores.masked_fill(keeps_first, -torch.inf)
