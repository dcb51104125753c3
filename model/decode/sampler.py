"""Chooses the next token from logits, with the same order and definitions as transformers.

    what the text so far changes (penalties.py)
    -> temperature -> top-k -> top-p -> min-p -> typical -> draw

B rows, V vocabulary, W candidates: the tokens that top-k keeps are sorted and set apart, so
that what comes after it works on dozens of numbers instead of the whole vocabulary.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from model.decode.draft import Draft
from model.decode.largest import (
    are_distinct,
    find_largest,
    find_places,
    rank_largest,
    sort_numbers,
)
from model.decode.logprobs import measure_token
from model.decode.penalties import adjust_logits, bound
from model.decode.settings import Sampling

# torch sums rows of fewer numbers than its vectors hold in another order than longer ones.
MIN_WIDTH = 64
MAX_SCORE = 3e38  # Just below the largest number of fp32.


@torch.inference_mode()
def choose_tokens(logits: Tensor, drafts: Sequence[Draft]) -> list[int]:
    """The next token of each draft, from its row of logits (B, V), by its own settings.

    A row's token depends on nothing in the others, and draws from its draft's `random` alone. A
    draft whose settings ask for log-probabilities gets its token's. Raises ValueError if the logits
    are not finite.
    """
    expect_finite(logits)
    logits = logits.float()
    scores = adjust_logits(logits, drafts)
    together: dict[object, list[int]] = {}
    for b, draft in enumerate(drafts):
        together.setdefault(draft.settings.drawing, []).append(b)
    chosen = [0] * len(drafts)
    for drawing, rows in together.items():
        part = scores if len(together) == 1 else scores[rows]
        if drawing is None:
            tokens = find_largest(part)
        else:
            draws = torch.cat([torch.rand(1, 1, generator=drafts[b].random) for b in rows])
            tokens = draw_tokens(part, drafts[rows[0]].settings, draws.to(part.device))
        for b, token in zip(rows, cast(list[int], tokens.tolist()), strict=True):
            chosen[b] = token
    for row, draft, token in zip(logits, drafts, chosen, strict=True):
        if draft.settings.logprobs is not None:
            draft.logprobs.append(measure_token(row, token, draft.settings.logprobs))
    return chosen


def expect_finite(logits: Tensor) -> None:
    """ValueError if a logit is a NaN or infinite, or all are -inf."""
    if not math.isfinite(logits.amax().item()):
        raise ValueError(
            "the model's logits are not finite: its training diverged or its weights are damaged; "
            "use an earlier checkpoint"
        )


def draw_tokens(logits: Tensor, sampling: Sampling, draws: Tensor) -> Tensor:
    """A token (B,) of each row of logits (B, V); `draws` (B, 1) are uniform in [0, 1)."""
    if len(logits) == 1 or not _sorts_alone(logits, sampling):
        scores, tokens = find_candidates(logits, sampling)
        if len(logits) == 1 or not sampling.top_k or scores.shape[1] <= sampling.top_k:
            return draw_candidates(scores, tokens, draws)
        # One row's ties make all rows longer, which may round their sums otherwise.
    rows = range(len(logits))
    return torch.cat([draw_tokens(logits[b : b + 1], sampling, draws[b : b + 1]) for b in rows])


def _sorts_alone(logits: Tensor, sampling: Sampling) -> bool:
    """Whether each row is sorted by itself, since how much of it is needed depends on it."""
    is_sorted = not sampling.keeps_all and not 0 < (sampling.top_k or 0) < logits.shape[1]
    return is_sorted and logits.device.type == "cpu"


def find_candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The scores and ids (B, W) of the tokens that may be drawn, highest logit first.

    Scores are logits over temperature, and -inf for tokens that may not be drawn. Where the
    settings let all be drawn, they are in the vocabulary's order: to sort it takes longer than all
    the rest.
    """
    num_words, top_k = logits.shape[-1], sampling.top_k or 0
    if 0 < top_k < num_words:
        scores, tokens = _keep_top_k(logits, top_k, sampling.temperature)
        scores = _cut_unlikely(scores, sampling)
    else:
        scores = scale(logits, sampling.temperature)
        if sampling.keeps_all:
            return scores, torch.arange(num_words, device=logits.device).expand(logits.shape)
        if len(logits) == 1 and _sorts_alone(logits, sampling):
            scores, tokens = _keep_likely(scores, sampling)
        else:
            scores, tokens = scores.sort(dim=-1, descending=True)
            scores = _cut_unlikely(scores, sampling)
    if sampling.typical_p < 1:
        scores = _keep_typical(scores, tokens, num_words, sampling.typical_p)
    return scores, tokens


def scale(logits: Tensor, temperature: float) -> Tensor:
    """Logits over a temperature, within the bounds of their dtype."""
    scores = logits / temperature
    lowest, highest = logits.aminmax()
    largest = max(-lowest.item(), highest.item()) / temperature
    return scores if largest < MAX_SCORE else bound(scores, logits)


def draw_candidates(scores: Tensor, tokens: Tensor, draws: Tensor) -> Tensor:
    """The token (B,) at which a row's cumulative probability passes its draw (B, 1).

    `draws` are uniform in [0, 1). If rounding leaves none above, the last possible one is taken.
    """
    rising = torch.softmax(scores, -1).cumsum(-1)
    whole = rising[:, -1:].contiguous()
    passed = torch.searchsorted(rising, draws * whole, right=True)
    last = torch.searchsorted(rising, whole)
    return tokens.gather(1, torch.minimum(passed, last)).squeeze(1)


def _keep_top_k(logits: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The top_k highest scores of each row and all that tie with the lowest of them, sorted."""
    highest, tokens = rank_largest(logits, top_k + 1)
    scores = scale(highest, temperature)
    if are_distinct(scores):
        return scores[:, :top_k], tokens[:, :top_k]
    scores = scale(logits, temperature)
    best = scores.topk(top_k, dim=-1)
    lowest = best.values[:, -1:]
    num_kept = int(((scores >= lowest) & (scores > -torch.inf)).sum(-1).max())
    if num_kept > top_k:
        best = scores.topk(num_kept, dim=-1)
    return best.values.masked_fill(best.values < lowest, -torch.inf), best.indices


def _keep_likely(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What top-p and min-p leave of one row of scores (1, V), sorted, as (1, W)."""
    ordered = sort_numbers(scores)
    kept = _cut_unlikely(ordered, sampling)
    width = max(int((kept > -torch.inf).sum()), min(MIN_WIDTH, kept.shape[1]))
    if are_distinct(ordered[:, : width + 1]):
        return kept[:, :width], find_places(scores, float(ordered[0, width - 1]))
    ordered, tokens = scores.sort(dim=-1, descending=True)
    return _cut_unlikely(ordered, sampling), tokens


def _cut_unlikely(scores: Tensor, sampling: Sampling) -> Tensor:
    """Sorted scores (B, W) with -inf for what top-p and min-p remove."""
    if sampling.top_p is not None and sampling.top_p < 1:
        # Summed from the least probable up, as in transformers, so that rounding agrees too.
        rising = torch.softmax(scores, -1).flip(-1).cumsum(-1).flip(-1)
        scores = _remove(scores, rising <= 1 - sampling.top_p)
    if sampling.min_p > 0:
        probs = torch.softmax(scores, -1)
        scores = _remove(scores, probs < sampling.min_p * probs[:, :1])
    return scores


def _keep_typical(scores: Tensor, tokens: Tensor, num_words: int, mass: float) -> Tensor:
    """Scores (B, W) with -inf for tokens whose surprise is far from the expected one.

    The nearest stay, until their probabilities sum to `mass`. Computed over the whole vocabulary in
    its order, as in transformers, so that rounding agrees too.
    """
    whole = scores.new_full((len(scores), num_words), -torch.inf).scatter(1, tokens, scores)
    logprobs = whole.log_softmax(-1)
    entropy = -(logprobs * logprobs.exp()).nansum(-1, keepdim=True)
    distances, order = (-logprobs - entropy).abs().sort(dim=-1)
    rising = whole.gather(1, order).softmax(-1).cumsum(-1)
    last = (rising < mass).sum(-1, keepdim=True).clamp(max=num_words - 1)
    removed = distances > distances.gather(1, last)
    removed[:, 0] = False
    removed = torch.empty_like(removed).scatter(1, order, removed)
    return scores.masked_fill(removed.gather(1, tokens), -torch.inf)


def _remove(scores: Tensor, removed: Tensor) -> Tensor:
    """Scores with -inf where removed; the first of a row, its likeliest, always stays."""
    removed[:, 0] = False
    return scores.masked_fill(removed, -torch.inf)
