"""model/step.c computes what torch does, for tokens of any rows, and is used where it is faster."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import compiled
from model.cache import KVCache, allocate_cache
from model.compiled import SWITCH, find_library
from model.config import KEPT, Kept, ModelConfig
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.narrow import round_weights
from model.steps import find as step
from model.steps.cpu import Step
from model.steps.find import find_step, is_right
from model.transformer import Transformer
from tests.tiny import CONFIG, make_model, make_tokenizer

needs_compiler = pytest.mark.skipif(find_library() is None, reason="needs a C compiler")
SHARED = replace(CONFIG, num_attention_heads=4, num_key_value_heads=2, head_dim=10)
SHAPES = {
    "as by default": CONFIG,
    "shared keys, own head size": SHARED,
    "untied, odd sizes": replace(SHARED, intermediate_size=77, tie_word_embeddings=False),
    "stretched": replace(
        CONFIG, rope_type="yarn", rope_factor=4.0, max_position_embeddings=128, vocab_size=301
    ),
}
CPU = torch.device("cpu")


@pytest.fixture
def fresh() -> Iterator[None]:
    """Whether there is a compiler is found out anew within the test, and after it."""
    find_library.cache_clear()
    yield
    find_library.cache_clear()


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is faster was never timed on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make_step(config: ModelConfig, kept: Kept = "fp32") -> tuple[Transformer, Step]:
    torch.manual_seed(0)
    model = Transformer(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)  # Norms too.
    round_weights(model, kept)
    library = find_library()
    assert library is not None
    return model, Step(library, model, 16)


def find_most(model: Transformer) -> int | None:
    """Up to how many tokens at a time the model is taken through step.c, if it is at all."""
    found = find_step(model)
    return None if found is None else found.max_tokens


def make_cache(config: ModelConfig) -> KVCache:
    """Three rows of 3, 100 and 1 random tokens, with room for more rows and tokens."""
    cache = allocate_cache(config, 5, 120, CPU, torch.float32)
    cache.keys.normal_()
    cache.values.normal_()
    cache.set_lengths([3, 100, 1])
    return cache


@needs_compiler
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_torchs_for_unequal_rows_and_several_tokens(shape: str, kept: Kept) -> None:
    config = SHAPES[shape]
    model, quick = make_step(config, kept)
    tokens = torch.arange(15).view(3, 5) * 19 % 300
    caches = [make_cache(config)]
    caches.append(KVCache(caches[0].keys.clone(), caches[0].values.clone(), caches[0].lengths))
    for places in (None, torch.tensor([0, 7, 14])):
        for part in (tokens[:, :1], tokens):
            if places is not None and part.shape[1] == 1:
                continue
            found, expected = (
                predict(part, cache, places)
                for predict, cache in zip((quick.predict, model.predict), caches, strict=True)
            )
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
            assert caches[0].lengths == caches[1].lengths
    torch.testing.assert_close(caches[0].keys, caches[1].keys, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(caches[0].values, caches[1].values, atol=1e-4, rtol=1e-4)


@needs_compiler
@pytest.mark.parametrize("kept", KEPT)
def test_a_step_is_the_same_to_the_last_bit_with_any_other_rows(kept: Kept) -> None:
    _, quick = make_step(SHARED, kept)
    tokens = torch.arange(16)[:, None] * 11 % 300
    rows = allocate_cache(SHARED, 16, 64, CPU, torch.float32)
    rows.keys.normal_()
    rows.values.normal_()
    lengths = [3 * row for row in range(16)]
    alone = []
    for row in range(16):
        rows.set_lengths(lengths)
        alone.append(quick.predict(tokens[row : row + 1], rows.select([row])))
    for num_rows in range(1, 17):
        rows.set_lengths(lengths[:num_rows])
        assert torch.equal(quick.predict(tokens[:num_rows], rows), torch.cat(alone[:num_rows]))


@needs_compiler
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_the_same_however_weights_are_walked(shape: str, kept: Kept) -> None:
    # Rows that are no multiple of four are left over in both: 301 ids, 77 inner features.
    _, quick = make_step(SHAPES[shape], kept)
    for num_tokens in (1, 2, 3, 4, 7):
        found = []
        for quick.is_spread in (False, True):
            torch.manual_seed(1)
            cache = make_cache(SHAPES[shape])
            tokens = torch.arange(3 * num_tokens).view(3, num_tokens) * 19 % 300
            found.append(quick.predict(tokens, cache))
        assert quick.is_spread
        assert torch.equal(*found)


@needs_compiler
def test_texts_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, forgetful: None) -> None:
    settings = Settings(do_sample=False, max_new_tokens=60, prompt_lookup_num_tokens=5)
    prompts = ["One two three four, one two three", "x", "And a longer one: she said it"]
    plain = Generator(make_model(), make_tokenizer())
    quick = Generator(make_model(), make_tokenizer())
    monkeypatch.setattr(step, "time_both", lambda *_: (1.0, 2.0))
    quick.predictor.step = find_step(quick.model)
    asked = []
    assert quick.predictor.step is not None
    run = quick.predictor.step.run
    monkeypatch.setattr(quick.predictor.step, "run", lambda *a: (asked.append(1), run(*a)))
    assert quick.complete(prompts, settings) == plain.complete(prompts, settings)
    assert len(asked) > 50


@needs_compiler
def test_a_text_is_the_same_by_torch_and_by_c_in_turn() -> None:
    settings = Settings(do_sample=False, max_new_tokens=24, batch_size=6)
    prompts = ["One two three four", "x", "And a longer one: she said", "a b", "She", "12"]
    each = [replace(settings, max_new_tokens=length) for length in (40, 10, 24, 16, 33, 5)]
    plain, mixed = (Generator(make_model(), make_tokenizer()) for _ in range(2))
    library = find_library()
    assert library is not None
    mixed.predictor.step = quick = Step(library, mixed.model, 3)
    asked: list[int] = []
    run, predict = quick.run, mixed.model.predict
    quick.run = lambda *a: (asked.append(1), run(*a))  # type: ignore[assignment]
    mixed.model.predict = lambda *a: (asked.append(0), predict(*a))[1]  # type: ignore[assignment]
    assert mixed.complete(prompts, each) == plain.complete(prompts, each)
    # Many texts by torch, the last three by C, each from keys that the other wrote.
    assert asked.count(0) > 10
    assert asked.count(1) > 10


@needs_compiler
@pytest.mark.parametrize(
    ("seconds", "expected"), [({16: 1.0}, 16), ({16: 3.0, 8: 3.0, 4: 1.0}, 4), ({}, None)]
)
def test_the_faster_way_is_used_and_then_kept(
    seconds: dict[int, float],
    expected: int | None,
    monkeypatch: pytest.MonkeyPatch,
    forgetful: None,
    tmp_path: Path,
) -> None:
    model = make_model().eval()
    monkeypatch.setattr(step, "time_both", lambda _, __, n: (seconds.get(n, 9.0), 2.0))
    assert find_most(model) == expected
    [kept] = (tmp_path / "cache").rglob("choice-*")
    # Timed anew, it would come out otherwise.
    monkeypatch.setattr(step, "time_both", lambda _, __, n: (1.0 if n == 8 else 3.0, 2.0))
    assert find_most(model) == expected
    narrow = make_model().eval()
    round_weights(narrow, "bf16")
    for other in (narrow, make_model(replace(CONFIG, intermediate_size=80)).eval()):
        assert find_most(other) == 8
    kept.write_text("7\n")  # Nothing that is ever chosen.
    assert find_most(model) == 8
    kept.unlink()
    kept.mkdir()  # Where nothing can be kept, it is timed every time.
    assert find_most(model) == 8


@needs_compiler
def test_what_is_timed_is_both_ways(forgetful: None) -> None:
    model = make_model().eval()
    ours, plain = step.time_both(make_step(CONFIG)[1], model, 2)
    assert ours > 0
    assert plain > 0
    assert find_step(make_model().double()) is None
    quick = make_step(CONFIG)[1]
    assert [quick.takes(n, 2) for n in (8, 9)] == [True, False]
    quick._model.double()
    assert not quick.takes(1, 1)


@needs_compiler
def test_what_does_not_compute_as_torch_does_is_not_used(
    monkeypatch: pytest.MonkeyPatch, fresh: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = tmp_path / "step.c"
    source = compiled.SOURCE.read_text("utf-8")
    assert source.count("right * cos[i] + left") == 1
    wrong.write_text(source.replace("right * cos[i] + left", "right * cos[i] - left"))
    monkeypatch.setattr(compiled, "SOURCE", wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library = find_library()
    assert library is not None
    with caplog.at_level(logging.DEBUG, "velocity"):
        assert not is_right(library)
        assert find_step(make_model()) is None
    assert "torch computes alone, as model/step.c cannot be used: its logits differ" in caplog.text


@pytest.mark.parametrize("compiler", ["missing", "fails", "writes nonsense", "switched off"])
def test_without_a_compiler_torch_computes_alone(
    compiler: str, monkeypatch: pytest.MonkeyPatch, fresh: None, tmp_path: Path
) -> None:
    fake = tmp_path / "cc"
    if compiler != "missing":
        last = 'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"'
        fake.write_text("#!/bin/sh\n" + ("exit 1" if compiler == "fails" else last))
        fake.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "cc" if compiler == "switched off" else str(fake))
    if compiler == "switched off":
        monkeypatch.setenv(SWITCH, "1")
    assert find_library() is None
    assert find_step(make_model()) is None


@needs_compiler
def test_it_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = compiled.build()
    monkeypatch.setattr(compiled, "run", lambda _: pytest.fail("compiled again"))
    assert compiled.build() == first
    assert [path.name for path in tmp_path.rglob("*")] == ["velocity", first.name]
