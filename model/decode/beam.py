"""Beam search: the likeliest texts that are found when several are kept at each token.

The order, the definitions and the rules for ending are those of transformers' `_beam_search`, one
prompt at a time. N beams, V vocabulary.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from model.decode.draft import Draft
from model.decode.logprobs import measure_token
from model.decode.penalties import adjust_logits
from model.decode.predictor import Predictor
from model.decode.sampler import expect_finite
from model.decode.settings import Settings

# The logarithm of the probability that the copies of a prompt begin with: all but one are out.
OUT = -1e9


@dataclass
class Candidate:
    """A beam with one more token."""

    draft: Draft
    parent: int  # The beam that it continues.
    total: float  # The sum of its tokens' log-probabilities, as penalties and the like change them.


@dataclass
class Search:
    """What has been found for one prompt, and whether that may become better."""

    settings: Settings
    max_new_tokens: int
    found: list[tuple[float, Draft]] = field(default_factory=list)  # Ended texts, the best first.
    length: int = 0  # How many tokens have been generated.
    may_improve: bool = True

    @property
    def is_full(self) -> bool:
        """Whether as many texts have ended as there are beams."""
        return len(self.found) == self.settings.num_beams

    @property
    def is_done(self) -> bool:
        """Whether nothing more is to be found."""
        return not self.may_improve or (self.is_full and self.settings.stops_early is True)

    def take(self, candidates: list[Candidate], best_total: float) -> None:
        """Take those that have ended; `best_total` is that of the best text that goes on.

        How good that may become is guessed from its length now, or, where only a longer one can be
        better and early_stopping is "never", from the longest that it may become.
        """
        penalty = self.settings.length_penalty
        ended = [
            (candidate.total / self.length**penalty, candidate.draft)
            for candidate in candidates
            if candidate.draft.finish_reason is not None
        ]
        ranked = sorted([*self.found, *ended], key=lambda scored: -scored[0])
        self.found = ranked[: self.settings.num_beams]
        goes_on = self.settings.stops_early == "never" and penalty > 0
        length = self.max_new_tokens if goes_on else self.length
        self.may_improve = not self.is_full or best_total / length**penalty > self.found[-1][0]


@torch.inference_mode()
def search_beams(predictor: Predictor, start: Draft) -> list[Draft]:
    """The best texts found that continue a draft, best first, at most num_beams, each with a score.

    The score is the sum of the tokens' log-probabilities over their number to the power of
    length_penalty. Temperature and what else decides how tokens are drawn plays no part.
    """
    num_beams = start.settings.num_beams
    cache = predictor.allocate(1, start.limit)
    logits = predictor.predict([start.tokens], cache)
    logits, cache = logits.expand(num_beams, -1), cache.select([0] * num_beams)
    running = [Candidate(start, 0, 0.0 if beam == 0 else OUT) for beam in range(num_beams)]
    search = Search(start.settings, start.limit - start.num_prompt_tokens)
    while True:
        candidates = extend(running, logits)
        running = [c for c in candidates if c.draft.finish_reason is None][:num_beams]
        search.length += 1
        search.take(candidates[:num_beams], running[0].total if running else OUT)
        if search.is_done or not running:
            return [replace(draft, score=score) for score, draft in search.found]
        cache = cache.select([candidate.parent for candidate in running])
        logits = predictor.predict([candidate.draft.tokens[-1:] for candidate in running], cache)


def extend(running: list[Candidate], logits: Tensor) -> list[Candidate]:
    """The likeliest ways to go on with beams whose logits are (N, V), the likeliest first.

    So many that N of them go on, whatever tokens end a text. Raises ValueError if the logits are
    not finite.
    """
    expect_finite(logits)
    drafts = [candidate.draft for candidate in running]
    logprobs = adjust_logits(logits.log_softmax(-1), drafts)
    totals = torch.tensor([candidate.total for candidate in running], device=logits.device)
    joint = (logprobs + totals[:, None]).flatten()
    num_kept = max(2, 1 + len(drafts[0].ends)) * len(running)
    best = joint.topk(min(num_kept, len(joint)))
    candidates = list[Candidate]()
    for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        parent, token = divmod(place, logits.shape[1])
        draft = drafts[parent].branch()
        if draft.settings.logprobs is not None:
            draft.logprobs.append(measure_token(logits[parent], token, draft.settings.logprobs))
        draft.add(token)
        candidates.append(Candidate(draft, parent, total))
    return candidates
