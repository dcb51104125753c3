"""What a text so far does to its next token's logits: biases, penalties, and what may not come.

    logit bias -> repetition penalty -> frequency and presence penalties
    -> no-repeat n-gram, bad words, minimum length

transformers' order and definitions (`_get_logits_processor`); frequency and presence penalties,
which it lacks, are vLLM's and come where vLLM has them, after the repetition penalty. V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.decode.draft import Draft
from model.decode.settings import Sampling


def adjust_logits(logits: Tensor, drafts: Sequence[Draft]) -> Tensor:
    """Logits (B, V) in fp32 as each draft's settings change them; the given ones stay as they are.

    Tokens that may not come get -inf. Where that is every token, that draft is not forbidden any.
    """
    changed = [b for b, draft in enumerate(drafts) if is_adjusted(draft.settings)]
    if not changed:
        return logits
    logits = logits.clone()
    for b in changed:
        row = bound(penalize(logits[b], drafts[b]), logits[b])
        forbidden = find_forbidden(len(row), drafts[b])
        if forbidden.any() and not forbidden.all():
            row = row.masked_fill(forbidden.to(row.device), -torch.inf)
        logits[b] = row
    return logits


def is_adjusted(sampling: Sampling) -> bool:
    """Whether these settings change logits at all, before any is drawn."""
    return bool(
        sampling.logit_bias
        or sampling.repetition_penalty != 1
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.no_repeat_ngram_size
        or sampling.bad_words
        or sampling.min_length
        or sampling.min_new_tokens
    )


def penalize(row: Tensor, draft: Draft) -> Tensor:
    """A draft's logits (V,) with its biases and penalties."""
    settings = draft.settings
    if settings.logit_bias:
        tokens = torch.tensor(list(settings.logit_bias), device=row.device)
        biases = torch.tensor(
            list(settings.logit_bias.values()), dtype=row.dtype, device=row.device
        )
        row = row.index_add(0, tokens, biases)
    if settings.repetition_penalty != 1:
        row = penalize_repetition(row, draft.tokens, settings.repetition_penalty)
    if settings.frequency_penalty or settings.presence_penalty:
        generated = torch.tensor(draft.tokens[draft.num_prompt_tokens :], dtype=torch.int64)
        counts = torch.bincount(generated, minlength=len(row)).to(row.device)
        row = row - settings.frequency_penalty * counts
        row = row - settings.presence_penalty * (counts > 0)
    return row


def penalize_repetition(row: Tensor, history: list[int], penalty: float) -> Tensor:
    """Logits (V,); those of tokens in the history are divided by the penalty, once each.

    Negative logits are multiplied by it instead (CTRL, Keskar et al. 2019, and transformers).
    """
    seen = torch.tensor(history, device=row.device)
    found = row[seen]
    return row.scatter(0, seen, torch.where(found < 0, found * penalty, found / penalty))


def find_forbidden(num_words: int, draft: Draft) -> Tensor:
    """Which tokens (V,) may not come next, on the CPU."""
    settings, tokens = draft.settings, draft.tokens
    forbidden = torch.zeros(num_words, dtype=torch.bool)
    size = settings.no_repeat_ngram_size
    if 0 < size <= len(tokens):
        ngrams = torch.tensor(tokens).unfold(0, size, 1)
        beginning = torch.tensor(tokens[len(tokens) + 1 - size :], dtype=torch.int64)
        forbidden[ngrams[(ngrams[:, :-1] == beginning).all(-1), -1]] = True
    for word in draft.bad_words:
        if tuple(tokens[len(tokens) - len(word) + 1 :]) == word[:-1]:
            forbidden[word[-1]] = True
    num_generated = len(tokens) - draft.num_prompt_tokens
    if len(tokens) < settings.min_length or num_generated < settings.min_new_tokens:
        forbidden[list(draft.ends)] = True
    return forbidden


def bound(scores: Tensor, logits: Tensor) -> Tensor:
    """The scores made of logits, with those that overflowed at the ends of their dtype.

    Infinities would make NaN; only what was -inf stays so. A NaN, from 0 divided by a penalty that
    rounds to 0, becomes 0.
    """
    return scores.nan_to_num().masked_fill(logits == -torch.inf, -torch.inf)
