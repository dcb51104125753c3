"""What a text so far does to its next token's logits: biases, penalties, and what may not come.

    logit bias -> repetition penalty -> frequency and presence penalties
    -> no-repeat n-gram, bad words, minimum length

transformers' order and definitions (`_get_logits_processor`); frequency and presence penalties,
which it lacks, are vLLM's and come where vLLM has them, after the repetition penalty. Of all rows
together only what changes is read and written: N numbers, each by its place in the flat logits.
B rows, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from model.decode.draft import Draft


def adjust_logits(logits: Tensor, drafts: Sequence[Draft]) -> Tensor:
    """Logits (B, V) in fp32 as each draft's settings change them; the given ones stay as they are.

    Tokens that may not come get -inf. Where that is every token, that draft is not forbidden any.
    """
    rows = [b for b, draft in enumerate(drafts) if draft.settings.changes_logits]
    if not rows:
        return logits
    logits = logits.clone(memory_format=torch.contiguous_format)
    num_words, flat = logits.shape[1], logits.view(-1)
    biased = [
        (b * num_words + token, bias)
        for b in rows
        for token, bias in (drafts[b].settings.logit_bias or {}).items()
    ]
    if biased:
        places, biases = zip(*biased, strict=True)
        flat.index_add_(0, _to(flat, places, torch.int64), _to(flat, biases, flat.dtype))
    penalize(logits, drafts, [b for b in rows if drafts[b].settings.penalizes])
    forbidden = list[int]()
    for b in rows:
        tokens = {token for token in find_forbidden(drafts[b]) if token < num_words}
        if len(tokens) < num_words:
            forbidden += [b * num_words + token for token in tokens]
    if forbidden:
        flat[_to(flat, forbidden, torch.int64)] = -torch.inf
    return logits


def penalize(logits: Tensor, drafts: Sequence[Draft], rows: Sequence[int]) -> None:
    """Apply the penalties of the drafts of these rows to their logits (B, V), in place.

    The repetition penalty divides the logits of tokens that a text has, once each; negative ones
    are multiplied by it instead (CTRL, Keskar et al. 2019, and transformers).
    """
    if not rows:
        return
    found = [drafts[b].history.count(drafts[b].tokens, drafts[b].num_prompt_tokens) for b in rows]
    numbers = [len(tokens) for tokens, _ in found]
    starts = np.repeat(np.array(rows) * logits.shape[1], numbers)
    flat, device = logits.view(-1), logits.device
    places = torch.from_numpy(starts + np.concatenate([tokens for tokens, _ in found])).to(device)
    counts = torch.from_numpy(np.concatenate([counts for _, counts in found])).to(device)
    strengths = [
        (s.repetition_penalty, s.frequency_penalty, s.presence_penalty)
        for s in (drafts[b].settings for b in rows)
    ]
    each = torch.tensor(strengths).repeat_interleave(torch.tensor(numbers), 0).to(device)
    repetition, frequency, presence = each.unbind(1)  # (N,) each.
    old = flat.gather(0, places)
    new = torch.where(old < 0, old * repetition, old / repetition)
    new = new - frequency * counts
    flat.scatter_(0, places, bound(new - presence * (counts > 0), old))


def find_forbidden(draft: Draft) -> Iterator[int]:
    """The tokens that may not come next; some perhaps twice."""
    settings, tokens = draft.settings, draft.tokens
    size = settings.no_repeat_ngram_size
    if 0 < size <= len(tokens):
        yield from draft.history.find_followers(tokens, size)
    last = tokens[-1:]
    for word in draft.bad_words:
        is_begun = len(word) == 1 or [word[-2]] == last
        if is_begun and tuple(tokens[len(tokens) - len(word) + 1 :]) == word[:-1]:
            yield word[-1]
    num_generated = len(tokens) - draft.num_prompt_tokens
    if len(tokens) < settings.min_length or num_generated < settings.min_new_tokens:
        yield from draft.ends


def bound(scores: Tensor, logits: Tensor) -> Tensor:
    """The scores made of logits, with those that overflowed at the ends of their dtype.

    Infinities would make NaN; only what was -inf stays so. A NaN, from 0 divided by a penalty that
    rounds to 0, becomes 0.
    """
    return scores.nan_to_num().masked_fill(logits == -torch.inf, -torch.inf)


def _to(like: Tensor, values: Sequence[float], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)
