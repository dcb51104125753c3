"""Texts with settings of their own: seeds, words that may not come, token ids as a prompt."""

from dataclasses import replace

import pytest
import torch
from tokenizers.normalizers import Replace

from model.decode.generator import Generator
from model.decode.settings import Settings
from tests.tiny import make_model, make_tokenizer

PROMPTS = ("The quick brown fox", "A", "one two")
RANDOM = Settings(temperature=1.5, top_k=None, top_p=None, max_new_tokens=15, seed=3)


@pytest.fixture(scope="module")
def generator() -> Generator:
    """In fp64, where no sum of a batch rounds so that a draw tips over."""
    return Generator(make_model().double(), make_tokenizer())


def test_each_prompt_may_have_settings_of_its_own(generator: Generator) -> None:
    settings = [
        replace(RANDOM, num_return_sequences=2, logprobs=2),
        Settings(do_sample=False, max_new_tokens=9, logprobs=0),
        replace(RANDOM, top_k=5, frequency_penalty=1.0, seed=4),
    ]
    together = generator.complete(PROMPTS, settings)
    alone = [
        completion
        for prompt, own in zip(PROMPTS, settings, strict=True)
        for completion in generator.complete([prompt], own)
    ]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert [c.finish_reason for c in together] == [c.finish_reason for c in alone]
    with pytest.raises(ValueError, match="3 prompts, but 2 settings; expected as many"):
        generator.complete(PROMPTS, settings[:2])


def test_a_seed_for_each_prompt_gives_its_text_in_any_batch(generator: Generator) -> None:
    seeds = [5, 6, 5]
    texts = generator.generate(PROMPTS, temperature=1.5, max_new_tokens=15, seed=seeds)
    for prompt, seed, text in zip(PROMPTS, seeds, texts, strict=True):
        (alone,) = generator.generate(prompt, temperature=1.5, max_new_tokens=15, seed=seed)
        assert alone == text
    same = generator.generate(["A", "A"], temperature=1.5, max_new_tokens=15, seed=[5, 6])
    assert [same[0]] == generator.generate("A", temperature=1.5, max_new_tokens=15, seed=5)
    assert [same[1]] == generator.generate("A", temperature=1.5, max_new_tokens=15, seed=6)


def test_a_prompt_may_be_token_ids(generator: Generator) -> None:
    ids = [generator.tokenizer.encode(prompt).ids for prompt in PROMPTS]
    assert generator.complete(ids, RANDOM) == generator.complete(PROMPTS, RANDOM)
    assert generator.complete([[]], RANDOM) == generator.complete([""], RANDOM)
    with pytest.raises(ValueError, match="a prompt has token 300; the tokenizer's ids are from 0"):
        generator.complete([[5, 300]], RANDOM)


def test_bad_words_do_not_come(generator: Generator) -> None:
    (free,) = generator.generate("A", temperature=0, max_new_tokens=30)
    word = free[1:3]
    assert len(make_tokenizer().encode(word).ids) > 1
    (other,) = generator.generate("A", temperature=0, max_new_tokens=30, bad_words=word)
    assert word not in other
    assert other[:1] == free[:1]
    drafts = generator.start(["A"], Settings(bad_words=["shards", " fox", "<|endoftext|>"]))
    encode = generator.tokenizer.encode
    assert {tuple(encode(text).ids) for text in ("shards", " shards", " fox")} <= set(
        drafts[0].bad_words
    )
    # One of blanks alone is itself, and not a single blank as well.
    [draft] = generator.start(["A"], Settings(bad_words="\n"))
    assert draft.bad_words == {tuple(encode("\n").ids)}


def test_no_end_comes_before_the_minimum(generator: Generator) -> None:
    """All that keeps a model that only ever ends from ending."""
    ending = Generator(make_model(), make_tokenizer())
    ending.model.predict = lambda *_: torch.eye(300)[:1]
    settings = Settings(temperature=0, max_new_tokens=20)
    for given, expected in ((settings, 1), (replace(settings, min_new_tokens=5), 6)):
        (completion,) = ending.complete(["one"], given)
        assert completion.finish_reason == "end_of_text"
        assert len(completion.tokens) - completion.num_prompt_tokens == expected
    (completion,) = ending.complete(["one"], replace(settings, min_length=9))
    assert len(completion.tokens) == 10


def test_a_bias_outside_the_vocabulary_is_refused(generator: Generator) -> None:
    with pytest.raises(ValueError, match="logit_bias has token 300; the tokenizer's ids end"):
        generator.complete(["A"], replace(RANDOM, logit_bias={300: 1.0}))
    (completion,) = generator.complete(["A"], replace(RANDOM, logit_bias={42: 100.0}))
    assert set(completion.tokens[1:]) == {42}


def test_log_probabilities_come_with_each_generated_token(generator: Generator) -> None:
    (completion,) = generator.complete(["A"], replace(RANDOM, logprobs=3))
    assert completion.logprobs is not None
    assert [found.token for found in completion.logprobs] == list(completion.tokens[1:])
    with torch.inference_mode():
        logits = generator.model(torch.tensor([completion.tokens[:-1]]))[0].float()
    expected = logits.log_softmax(-1)
    for place, found in enumerate(completion.logprobs):
        assert found.logprob == pytest.approx(float(expected[place, found.token]), abs=1e-5)
        assert len(found.alternatives) == 3
    assert generator.complete(["A"], RANDOM)[0].logprobs is None


def test_a_bad_word_that_has_no_token_forbids_none() -> None:
    tokenizer = make_tokenizer()
    tokenizer.normalizer = Replace("~", "")
    writer = Generator(make_model(), tokenizer)
    settings = Settings(max_new_tokens=3, temperature=0, bad_words="~")
    assert () not in writer.start(["A"], settings)[0].bad_words
    assert len(writer.generate("A", temperature=0, max_new_tokens=3, bad_words="~")) == 1
