"""Beam search finds transformers' texts and scores; a text's log-probabilities are its, too."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from model.cache import KVCache, allocate_cache
from model.checkpoints.folder import save_model
from model.decode.generator import Generator
from model.decode.score import Scoring
from model.decode.settings import Settings
from tests.tiny import CONFIG, TOKENIZER_JSON, make_model, make_tokenizer

# Tokens that end a text: so many that random models end theirs.
ENDS = tuple(range(40))
PROMPTS = ("The quick brown fox", "She said: it's")


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(make_model().double(), make_tokenizer(), ENDS)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("run") / "checkpoint-1"
    save_model(folder, make_model(), TOKENIZER_JSON)
    return AutoModelForCausalLM.from_pretrained(folder).double()


@pytest.mark.parametrize("early_stopping", ["false", "true", "never"])
@pytest.mark.parametrize(
    "settings",
    [
        Settings(num_beams=3, max_new_tokens=20, num_return_sequences=3),
        Settings(num_beams=4, max_new_tokens=12, num_return_sequences=2, length_penalty=-1.0),
        Settings(num_beams=2, max_new_tokens=25, length_penalty=3.0, repetition_penalty=1.3),
        Settings(num_beams=5, max_new_tokens=1, num_return_sequences=5),
        Settings(num_beams=2, max_new_tokens=20, no_repeat_ngram_size=2, min_new_tokens=6),
    ],
)
def test_texts_and_scores_equal_transformers(
    generator: Generator, llama: Any, settings: Settings, early_stopping: str
) -> None:
    settings = replace(settings, early_stopping=early_stopping)
    completions = generator.complete(PROMPTS, settings)
    for number, prompt in enumerate(PROMPTS):
        ids = torch.tensor([generator.tokenizer.encode(prompt).ids])
        expected = llama.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            num_beams=settings.num_beams,
            num_return_sequences=settings.num_return_sequences,
            max_new_tokens=settings.max_new_tokens,
            length_penalty=settings.length_penalty,
            early_stopping=settings.stops_early,
            repetition_penalty=settings.repetition_penalty,
            no_repeat_ngram_size=settings.no_repeat_ngram_size,
            min_new_tokens=settings.min_new_tokens,
            eos_token_id=list(ENDS),
            pad_token_id=299,
            output_scores=True,
            return_dict_in_generate=True,
        )
        count = settings.num_return_sequences
        found = completions[number * count : (number + 1) * count]
        rows = expected.sequences.tolist()
        length = len(rows[0])
        assert [[*c.tokens, *[299] * (length - len(c.tokens))] for c in found] == rows
        assert [c.score for c in found] == pytest.approx(
            expected.sequences_scores.tolist(), abs=1e-4
        )


def test_a_search_ends_at_a_stop_string_and_at_the_context(generator: Generator) -> None:
    settings = Settings(num_beams=3, max_new_tokens=30, length_penalty=5.0)
    endless = Generator(make_model(), make_tokenizer())
    (free,) = endless.complete(["A"], replace(settings, logprobs=1))
    assert free.finish_reason == "length"
    assert free.logprobs is not None
    assert [found.token for found in free.logprobs] == list(free.tokens[1:])
    total = sum(found.logprob or 0.0 for found in free.logprobs)
    assert free.score == pytest.approx(total / 30**5, abs=1e-4)
    stop = free.text[3]
    (stopped,) = endless.complete(["A"], replace(settings, length_penalty=0.0, stop=stop))
    assert stopped.finish_reason == "stop"
    assert stop not in stopped.text
    (full,) = endless.complete(["A"], replace(settings, max_new_tokens=500))
    assert len(full.tokens) == CONFIG.max_position_embeddings
    assert full.finish_reason == "context"


def test_a_search_and_a_draw_share_a_batch(generator: Generator) -> None:
    settings = [
        Settings(num_beams=2, num_return_sequences=2, max_new_tokens=9),
        Settings(max_new_tokens=9, seed=1),
    ]
    together = generator.complete(PROMPTS, settings)
    assert together[:2] == generator.complete(PROMPTS[:1], settings[0])
    assert together[2:] == generator.complete(PROMPTS[1:], settings[1])
    pieces = "".join(generator.stream(PROMPTS[0], settings[0]))
    assert PROMPTS[0] + pieces == together[0].text


def test_beams_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="num_return_sequences is 4, but num_beams is 3"):
        Settings(num_beams=3, num_return_sequences=4)
    with pytest.raises(ValueError, match="early_stopping is 'soon'; expected false, true or never"):
        Settings(early_stopping="soon")
    with pytest.raises(ValueError, match="length_penalty is nan"):
        Settings(length_penalty=float("nan"))
    with pytest.raises(ValueError, match="num_beams is 0; expected 1 or more"):
        Settings(num_beams=0)


def test_a_texts_log_probabilities_are_transformers(generator: Generator, llama: Any) -> None:
    text = PROMPTS[0] * 8  # Longer than the places that are computed together.
    scored = generator.score(text, 3)
    ids = generator.tokenizer.encode(text).ids
    assert [found.token for found in scored] == ids
    assert len(ids) > 100
    assert scored[0].logprob is None
    with torch.inference_mode():
        expected = llama(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    for place, found in enumerate(scored[1:]):
        assert found.logprob == pytest.approx(float(expected[place, found.token]), abs=1e-4)
        best = expected[place].topk(3)
        assert [token for token, _ in found.alternatives] == best.indices.tolist()
        values = [value for _, value in found.alternatives]
        assert values == pytest.approx(best.values.tolist(), abs=1e-4)
    assert generator.score(ids, 3) == scored
    assert generator.score(text)[1].alternatives == ()


class Largest(TorchDispatchMode):
    """How many bytes the largest tensor has that an operator makes, but for a cache and masks."""

    def __init__(self, cache: KVCache) -> None:
        super().__init__()
        self.num_bytes = 0
        self.cached = [t.untyped_storage().data_ptr() for t in (cache.keys, cache.values)]

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = operator(*args, **kwargs or {})
        is_number = isinstance(made, torch.Tensor) and made.dtype != torch.bool
        if is_number and made.untyped_storage().data_ptr() not in self.cached:
            self.num_bytes = max(self.num_bytes, made.nbytes)
        return made


def test_a_score_takes_no_more_memory_for_a_longer_text_but_the_caches() -> None:
    config = replace(CONFIG, max_position_embeddings=1000)
    scorer = Generator(make_model(config), make_tokenizer())
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for num_tokens in (300, 600, 950):
            model, ids = scorer.model.config, [num % 300 for num in range(num_tokens)]
            cache = allocate_cache(model, 1, num_tokens, torch.device("cpu"), torch.float32)
            patch.setattr(scorer.predictor, "allocate", lambda *_, given=cache: given)
            with Largest(cache) as largest:
                scored = scorer.score(ids, 2)
            assert [token.token for token in scored] == ids
            found[num_tokens] = largest.num_bytes
    assert found[950] == found[600] == found[300] <= 256 * 300 * 4


def test_a_text_is_scored_while_others_are_written(generator: Generator) -> None:
    ids = generator.tokenizer.encode(PROMPTS[0] * 8).ids[:100]
    scoring, settings = Scoring(generator.predictor, ids, 2), Settings(max_new_tokens=3, seed=1)
    alone, together = generator.complete(PROMPTS, settings), []
    while not scoring.is_done:
        assert scoring.step(16) in (16, 4)
        together.append(generator.complete(PROMPTS, settings))
    assert together == [alone] * 7
    assert [found.token for found in scoring.scored] == ids
    for found, expected in zip(scoring.scored[1:], generator.score(ids, 2)[1:], strict=True):
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert len(found.alternatives) == 2
    [first] = generator.complete([ids], Settings(max_new_tokens=1, temperature=0))
    assert scoring.logits.argmax(-1).tolist() == [first.tokens[-1]]


def test_a_text_whose_tokens_turn_by_its_length_is_scored_at_once() -> None:
    config = replace(CONFIG, rope_type="dynamic", rope_factor=2.0, max_position_embeddings=64)
    scorer = Generator(make_model(config), make_tokenizer())
    ids = [num % 300 for num in range(100)]
    with pytest.MonkeyPatch.context() as patch:
        whole = scorer.score(ids)
        patch.setattr("model.decode.generator.PIECE", 16)
        assert scorer.score(ids) == whole


def test_a_score_needs_a_text_within_the_context(generator: Generator) -> None:
    context = CONFIG.max_position_embeddings
    assert len(generator.score([5] * context)) == context
    with pytest.raises(ValueError, match=f"the model's context is {context}; score it in parts"):
        generator.score([5] * (context + 1))
    assert [found.token for found in generator.score("")] == [generator.begin]


def test_what_is_generated_scores_as_it_was_reported(generator: Generator) -> None:
    (completion,) = generator.complete(
        PROMPTS[:1], Settings(temperature=2.0, max_new_tokens=20, logprobs=2, seed=1)
    )
    scored = generator.score(completion.tokens, 2)[completion.num_prompt_tokens :]
    assert completion.logprobs is not None
    for found, again in zip(completion.logprobs, scored, strict=True):
        assert found.logprob == pytest.approx(again.logprob, abs=1e-5)
        assert [t for t, _ in found.alternatives] == [t for t, _ in again.alternatives]


def test_logits_that_are_not_finite_are_refused() -> None:
    diverged = Generator(make_model(), make_tokenizer())
    torch.nn.init.constant_(diverged.model.model.norm.weight, torch.nan)
    with pytest.raises(ValueError, match="logits are not finite"):
        diverged.complete(PROMPTS, Settings(num_beams=2, max_new_tokens=3))
