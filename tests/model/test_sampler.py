"""Tokens are chosen as transformers chooses them, row by row, and bad settings are refused."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from model.decode.draft import Draft, make_random
from model.decode.penalties import adjust_logits
from model.decode.sampler import choose_tokens, draw_candidates, find_candidates
from model.decode.settings import Settings
from model.decode.text_stream import TextStream
from tests.tiny import make_tokenizer

NUM_WORDS = 500
ENDS = (7, 9)
PLAIN = Settings(temperature=1.0, top_k=None, top_p=None)


def make_draft(
    settings: Settings,
    tokens: list[int] | None = None,
    num_prompt_tokens: int = 0,
    seed: int = 0,
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> Draft:
    return Draft(
        index=0,
        settings=settings,
        text="",
        tokens=tokens or [],
        num_prompt_tokens=num_prompt_tokens,
        ends=ENDS,
        limit=1000,
        limit_reason="length",
        stream=TextStream(make_tokenizer()),
        random=make_random(seed, "", 0),
        bad_words=bad_words,
    )


def process_as_transformers(logits: Tensor, draft: Draft) -> Tensor:
    """Logits (V,) with -inf for what may not be drawn, by transformers' own processors.

    In the order of its `_get_logits_processor`.
    """
    s, start, steps = draft.settings, draft.num_prompt_tokens, list[Any]()
    if s.logit_bias:
        bias = {(token,): float(bias) for token, bias in s.logit_bias.items()}
        steps.append(SequenceBiasLogitsProcessor(bias))
    if s.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
    if s.no_repeat_ngram_size:
        steps.append(NoRepeatNGramLogitsProcessor(s.no_repeat_ngram_size))
    if draft.bad_words:
        words = [list(word) for word in draft.bad_words]
        steps.append(NoBadWordsLogitsProcessor(words, list(ENDS)))
    if s.min_length:
        steps.append(MinLengthLogitsProcessor(s.min_length, list(ENDS)))
    if s.min_new_tokens:
        steps.append(MinNewTokensLengthLogitsProcessor(start, s.min_new_tokens, list(ENDS)))
    steps.append(TemperatureLogitsWarper(float(s.temperature)))
    if s.top_k:
        steps.append(TopKLogitsWarper(s.top_k))
    if s.top_p is not None and s.top_p < 1:
        steps.append(TopPLogitsWarper(s.top_p))
    if s.min_p > 0:
        steps.append(MinPLogitsWarper(s.min_p))
    if s.typical_p < 1:
        steps.append(TypicalLogitsWarper(s.typical_p))
    history = torch.tensor([draft.tokens], dtype=torch.int64)
    return LogitsProcessorList(steps)(history, logits[None].clone())[0]


def process(logits: Tensor, draft: Draft) -> Tensor:
    """The same by this project's sampler."""
    adjusted = adjust_logits(logits[None], [draft])
    scores, tokens = find_candidates(adjusted, draft.settings)
    return torch.full_like(adjusted, -torch.inf).scatter(1, tokens, scores)[0]


def process_freely(logits: Tensor, draft: Draft) -> Tensor:
    """The same where all may be drawn."""
    free = replace(draft.settings, top_k=None, top_p=None, min_p=0.0, typical_p=1.0)
    return process(logits, replace(draft, settings=free))


def draw_settings(rng: random.Random) -> Settings:
    return Settings(
        temperature=rng.choice([0.05, 0.5, 0.8, 1.0, 1.7, 5.0]),
        top_k=rng.choice([None, 0, 1, 2, 20, 50, NUM_WORDS, 2 * NUM_WORDS]),
        top_p=rng.choice([None, 1.0, 0.99, 0.9, 0.5, 0.1, 1e-6]),
        min_p=rng.choice([0.0, 0.0, 0.001, 0.05, 0.3, 1.0]),
        typical_p=rng.choice([1.0, 1.0, 0.95, 0.5, 0.1]),
        repetition_penalty=rng.choice([1.0, 1.1, 1.5, 0.7]),
        no_repeat_ngram_size=rng.choice([0, 0, 1, 2, 3]),
        min_length=rng.choice([0, 30, 60]),
        min_new_tokens=rng.choice([0, 5, 50]),
        logit_bias=rng.choice([None, {3: 7.5, 11: -100}]),
    )


def draw_draft(rng: random.Random) -> Draft:
    """A text of few different tokens, so that it repeats itself."""
    tokens = rng.choices(range(rng.choice([3, 30, NUM_WORDS])), k=rng.choice([1, 2, 3, 40]))
    words = [tuple(rng.choices(range(5), k=rng.choice([1, 2, 3]))) for _ in range(3)]
    words += [(*tokens[-2:], 20)]
    bad_words = tuple(words) if rng.random() < 0.5 else ()
    start = rng.randrange(len(tokens) + 1)
    return make_draft(draw_settings(rng), tokens, start, bad_words=bad_words)


@pytest.mark.parametrize("seed", range(10))
def test_scores_equal_transformers_in_random_settings(seed: int) -> None:
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(50):
        draft = draw_draft(rng)
        logits = torch.randn(NUM_WORDS, generator=generator) * rng.choice([0.5, 3.0, 10.0])
        has_ties = rng.random() < 0.3
        if has_ties:
            logits = logits.round()
        if rng.random() < 0.3:
            logits[torch.rand(NUM_WORDS, generator=generator) < 0.5] = -torch.inf
        found, expected = process(logits, draft), process_as_transformers(logits, draft)
        assert bool(expected.isfinite().any())
        if has_ties:  # Which of equal ones top-p keeps is up to torch's sort.
            assert torch.equal(
                found[found.isfinite()], process_freely(logits, draft)[found.isfinite()]
            )
            found, expected = found.sort().values, expected.sort().values
        assert torch.equal(found, expected), draft


def test_presence_and_frequency_penalties_count_what_was_generated() -> None:
    draft = make_draft(
        replace(PLAIN, presence_penalty=0.5, frequency_penalty=1.5), [0, 0, 1, 2, 1], 2
    )
    found = adjust_logits(torch.zeros(1, 4), [draft])
    assert found.tolist() == [[0.0, -3.5, -2.0, 0.0]]


def test_they_come_after_the_repetition_penalty() -> None:
    draft = make_draft(replace(PLAIN, presence_penalty=1.0, repetition_penalty=2.0), [1])
    assert adjust_logits(torch.tensor([[0.0, 4.0]]), [draft]).tolist() == [[0.0, 1.0]]


def test_where_no_token_is_left_none_is_forbidden() -> None:
    draft = make_draft(replace(PLAIN, no_repeat_ngram_size=1), [0, 1, 2])
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert torch.equal(adjust_logits(logits, [draft]), logits)
    assert adjust_logits(logits, [make_draft(draft.settings, [0, 2])]).isfinite().tolist() == [
        [False, True, False]
    ]


def test_top_k_keeps_ties() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    sampling = replace(PLAIN, top_k=2)
    found = [process(row, make_draft(sampling)).isfinite().tolist() for row in logits]
    assert found == [
        [False, True, True, True, True, False],
        [True, True, False, False, False, False],
    ]


def test_top_p_that_is_met_exactly_is_enough() -> None:
    draft = make_draft(replace(PLAIN, top_p=0.75), [0])
    for cut in (process, process_as_transformers):
        assert cut(torch.zeros(4), draft).isfinite().sum() == 3


def test_each_repeated_token_is_penalized_once() -> None:
    logits = torch.tensor([[2.0, -2.0, 4.0], [2.0, -2.0, 4.0], [2.0, -2.0, 4.0]])
    sampling = replace(PLAIN, repetition_penalty=2.0)
    drafts = [make_draft(sampling, [0, 1, 0, 0]), make_draft(sampling, [2]), make_draft(PLAIN, [2])]
    found = adjust_logits(logits, drafts)
    assert found.tolist() == [[1.0, -4.0, 4.0], [2.0, -2.0, 2.0], [2.0, -2.0, 4.0]]
    assert logits[0].tolist() == [2.0, -2.0, 4.0]


@pytest.mark.parametrize("greedy", [Settings(do_sample=False), Settings(temperature=0)])
def test_greedy_takes_the_likeliest_after_the_penalty(greedy: Settings) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert choose_tokens(logits, [make_draft(greedy, [1])]) == [1]
    penalized = replace(greedy, repetition_penalty=2.0)
    assert choose_tokens(logits, [make_draft(penalized, [1])]) == [2]


def test_draws_follow_the_probabilities() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probs.log().expand(20_000, 4)
    tokens = choose_tokens(logits, [make_draft(PLAIN, seed=7)] * len(logits))
    found = torch.bincount(torch.tensor(tokens), minlength=4) / len(tokens)
    torch.testing.assert_close(found, probs, atol=0.012, rtol=0)


def test_the_smallest_and_largest_draws_stay_among_the_candidates() -> None:
    scores = torch.tensor([[0.0, -1.0, -torch.inf]])
    tokens = torch.tensor([[7, 8, 9]])
    for draw, expected in ((0.0, 7), (1 - 2**-24, 8), (1.0, 8)):
        assert draw_candidates(scores, tokens, torch.tensor([[draw]])).item() == expected


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_different_settings_choose_what_they_choose_alone(seed: int) -> None:
    rng = random.Random(seed)
    logits = torch.randn(24, NUM_WORDS, generator=torch.Generator().manual_seed(seed))
    logits[::5] = logits[::5].round()  # Ties, which make more candidates.
    common = replace(PLAIN, temperature=2.0, top_k=20, top_p=0.95)
    given = [draw_draft(rng) for _ in logits]
    for draft, kind in zip(given, rng.choices(["own", "common", "greedy"], k=24), strict=True):
        if kind != "own":
            draft.settings = common if kind == "common" else replace(common, do_sample=False)
        draft.settings = replace(draft.settings, logprobs=rng.choice([None, 0, 3]))

    def choose(rows: list[int]) -> list[Any]:
        drafts = [replace(given[b], random=make_random(b, "", 0), logprobs=[]) for b in rows]
        tokens = choose_tokens(logits[rows], drafts)
        return [(token, draft.logprobs) for token, draft in zip(tokens, drafts, strict=True)]

    together = choose(list(range(24)))
    assert [choose([b])[0] for b in range(24)] == together
    assert choose([14, 2, 5]) == [together[14], together[2], together[5]]
    assert len({token for token, _ in together}) > 12


def test_one_rows_ties_leave_another_rows_sums_alone() -> None:
    """A row is rounded as if it were alone: what it may draw has as many places."""
    logits = torch.randn(2, NUM_WORDS, generator=torch.Generator().manual_seed(0))
    logits[1, :400] = 9.0
    widths = list[int]()

    def remember(scores: Tensor, tokens: Tensor, draws: Tensor) -> Tensor:
        widths.append(scores.shape[1])
        return draw_candidates(scores, tokens, draws)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.decode.sampler.draw_candidates", remember)
        drafts = [make_draft(replace(PLAIN, top_k=50), seed=b) for b in range(2)]
        choose_tokens(logits, drafts)
    assert widths == [50, 400]


def test_log_probabilities_are_the_models() -> None:
    logits = torch.randn(2, NUM_WORDS, generator=torch.Generator().manual_seed(0))
    settings = Settings(
        temperature=3.0, repetition_penalty=1.5, min_new_tokens=5, logprobs=4, seed=1
    )
    drafts = [make_draft(settings, [5, 6], 1), make_draft(replace(settings, logprobs=None), [5])]
    [token, _] = choose_tokens(logits.to(torch.bfloat16), drafts)
    expected = logits[0].to(torch.bfloat16).double().log_softmax(-1)
    [found] = drafts[0].logprobs
    assert found.token == token
    assert found.logprob == pytest.approx(float(expected[token]), abs=1e-6)
    best = expected.topk(4)
    assert [token for token, _ in found.alternatives] == best.indices.tolist()
    assert [value for _, value in found.alternatives] == pytest.approx(best.values.tolist())
    assert drafts[1].logprobs == []


def test_logits_that_are_not_finite_are_refused() -> None:
    for value in (torch.nan, torch.inf):
        logits = torch.tensor([[0.0, value], [0.0, 0.0]])
        with pytest.raises(ValueError, match="logits are not finite"):
            choose_tokens(logits, [make_draft(Settings(temperature=0))] * 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("typical_p", 0.0),
        ("typical_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -3.0),
        ("no_repeat_ngram_size", -1),
        ("min_length", -1),
        ("min_new_tokens", -1),
    ],
)
def test_settings_without_meaning_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{key} is {value}; expected a number "):
        Settings(**{key: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bad_words": ["x", ""]}, "bad_words holds a word that is empty"),
        ({"logit_bias": {5: 101.0}}, "logit_bias of token 5 is 101.0; expected a number from -100"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias of token -1"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias of token 5 is nan"),
        ({"logprobs": -1}, "logprobs is -1; expected 0 or more"),
        ({"num_return_sequences": 10**8}, "num_return_sequences is 100000000; expected at most"),
        ({"num_beams": 1025}, "num_beams is 1025; expected at most 1024"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens is 5, but max_new_tokens is"),
    ],
)
def test_further_settings_without_meaning_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)
