"""Generated text: transformers' tokens, the same alone or in a batch, streamed or not."""

import itertools
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import AutoModelForCausalLM

from model.checkpoints.folder import save_model
from model.checkpoints.seal import CheckpointError, seal
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.decode.text_stream import TextStream
from model.generate import load_generator
from tests.model.test_checkpoint_folder import flip_byte, write_seed_checkpoint
from tests.tiny import CONFIG, SENTENCES, TOKENIZER_JSON, make_model, make_tokenizer

PROMPTS = (
    "The quick brown fox",
    "A",
    "She said: it's 2026, we'd rather not. naïve café",
    "one two",
)
GREEDY = Settings(do_sample=False, max_new_tokens=40)
RANDOM = Settings(temperature=1.5, top_k=None, top_p=None, max_new_tokens=40, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "checkpoint-7"
    save_model(path, make_model(), TOKENIZER_JSON)
    seal(path)
    return path


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return load_generator(folder, device="cpu")


@pytest.fixture(scope="module")
def exact_generator(folder: Path) -> Generator:
    """In fp64: a batch is summed in another order than a row, and in fp32 a draw may tip over."""
    generator = load_generator(folder, device="cpu")
    generator.model.double()
    return generator


def test_loading_does_not_wait_for_torchs_compiler(folder: Path) -> None:
    """It takes seconds, and comes with what draws weights for a model that has none yet."""
    script = (
        "import sys; from model.generate import load_generator; "
        f"load_generator({str(folder)!r}, 'cpu').generate('One'); "
        "print('torch._dynamo' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.stdout == "False\n", process.stderr


def make_scripted(tokens: Iterable[int]) -> Generator:
    """A generator whose model has nothing to say: what it writes is given."""
    generator, script = Generator(make_model(), make_tokenizer()), iter(tokens)

    def predict(*_: object) -> Tensor:
        return one_hot(torch.tensor([next(script)]), CONFIG.num_ids).float()

    generator.model.predict = predict
    return generator


def write(text: str, settings: Settings) -> tuple[str, str, list[str]]:
    """What `text`, generated token by token, becomes: the text, why it ended, its pieces."""
    tokens = make_tokenizer().encode(text).ids
    settings = replace(settings, do_sample=False, max_new_tokens=len(tokens))
    (completion,) = make_scripted(tokens).complete([""], settings)
    pieces = list(make_scripted(tokens).stream("", settings))
    assert "".join(pieces) == completion.text
    assert all(pieces)
    return completion.text, completion.finish_reason, pieces


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.3])
def test_greedy_tokens_equal_transformers(
    generator: Generator, folder: Path, repetition_penalty: float
) -> None:
    llama = AutoModelForCausalLM.from_pretrained(folder)
    settings = replace(GREEDY, repetition_penalty=repetition_penalty)
    num_different = 0
    for completion in generator.complete(PROMPTS, settings):
        prompt = torch.tensor([completion.tokens[: completion.num_prompt_tokens]])
        expected = llama.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            max_new_tokens=40,
            repetition_penalty=repetition_penalty,
        )
        assert list(completion.tokens) == expected[0].tolist()
        num_different += len(set(completion.tokens[completion.num_prompt_tokens :]))
    assert num_different > 40


def test_prompts_of_different_lengths_write_what_they_write_alone(
    exact_generator: Generator,
) -> None:
    for settings in (GREEDY, RANDOM, replace(RANDOM, num_return_sequences=3)):
        together = exact_generator.complete(PROMPTS, settings)
        alone = [c for prompt in PROMPTS for c in exact_generator.complete([prompt], settings)]
        assert together == alone
        assert exact_generator.complete(PROMPTS, replace(settings, batch_size=3)) == together


def test_rows_go_on_when_others_have_ended(generator: Generator) -> None:
    alone = [generator.complete([prompt], GREEDY)[0] for prompt in PROMPTS]
    stops = [completion.text[-3:] for completion in alone[::2]]
    settings = replace(GREEDY, stop=stops)
    together = generator.complete(PROMPTS, settings)
    assert len({len(completion.tokens) for completion in together}) > 1
    assert together == [generator.complete([prompt], settings)[0] for prompt in PROMPTS]


def test_texts_come_in_the_order_of_the_prompts(generator: Generator) -> None:
    prompts = ["one", "two"]
    texts = generator.generate(prompts, max_length=20, num_return_sequences=3, seed=1)
    assert [text[:3] for text in texts] == ["one"] * 3 + ["two"] * 3
    assert len(set(texts)) == 6
    assert generator.generate([], max_length=20) == []


def test_the_same_seed_gives_the_same_text(generator: Generator) -> None:
    def texts(seed: int | None) -> list[str]:
        return generator.generate("one", temperature=1.5, num_return_sequences=2, seed=seed)

    assert texts(0) == texts(0)
    assert texts(0) != texts(1)
    assert texts(None) != texts(None)
    torch.manual_seed(5)
    first = texts(None)
    torch.manual_seed(5)
    assert texts(None) == first


def test_a_prompt_given_twice_gives_two_texts(generator: Generator) -> None:
    twice = generator.complete(["one", "one"], RANDOM)
    assert twice == generator.complete(["one"], replace(RANDOM, num_return_sequences=2))
    assert twice[0].text != twice[1].text


def test_max_length_counts_the_prompt(generator: Generator) -> None:
    tokens = make_tokenizer().encode(PROMPTS[0]).ids
    (text,) = generator.generate(PROMPTS[0], max_length=len(tokens) + 5, temperature=0)
    (same,) = generator.generate(PROMPTS[0], max_new_tokens=5, temperature=0)
    (completion,) = generator.complete([PROMPTS[0]], replace(GREEDY, max_new_tokens=5))
    assert text == same == completion.text
    assert len(completion.tokens) == len(tokens) + 5
    assert (completion.num_prompt_tokens, completion.finish_reason) == (len(tokens), "length")


def test_writing_ends_with_the_context() -> None:
    endless = make_scripted(itertools.repeat(5))
    (completion,) = endless.complete(["one"], replace(GREEDY, max_new_tokens=1000))
    assert len(completion.tokens) == CONFIG.max_position_embeddings
    assert completion.finish_reason == "context"


def test_prompts_without_room_are_refused(generator: Generator) -> None:
    context = CONFIG.max_position_embeddings
    with pytest.raises(ValueError, match=f"has {context} tokens, the model's context is {context}"):
        generator.generate("!" * context, max_length=1000)
    assert generator.generate("!" * (context - 1), max_length=1000)
    with pytest.raises(ValueError, match="has 20 tokens, but max_length is 20 and includes them"):
        generator.generate("!" * 20, max_length=20)


def test_an_empty_prompt_begins_a_document(generator: Generator) -> None:
    (completion,) = generator.complete([""], GREEDY)
    assert completion.tokens[0] == generator.end_of_text
    assert completion.num_prompt_tokens == 1
    assert completion.text == make_tokenizer().decode(list(completion.tokens[1:]))


def test_a_prompt_that_spells_the_end_of_text_is_text(generator: Generator) -> None:
    prompt = "<|endoftext|> and on"
    (completion,) = generator.complete([prompt], GREEDY)
    assert completion.text.startswith(prompt)
    assert generator.end_of_text not in completion.tokens[: completion.num_prompt_tokens]


def test_lone_surrogates_in_a_prompt_are_replaced(generator: Generator) -> None:
    broken = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert generator.generate(broken, temperature=0) == generator.generate(
        "caf\N{REPLACEMENT CHARACTER}", temperature=0
    )


def test_writing_ends_at_the_end_of_text() -> None:
    tokens = [*make_tokenizer().encode(" more").ids, 0, 5]
    (completion,) = make_scripted(tokens).complete(["one"], replace(GREEDY, max_new_tokens=50))
    assert completion.text == "one more"
    assert completion.finish_reason == "end_of_text"
    assert completion.tokens[-1] == 0


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", "two", "one "),
        ("one two three", ["three", "two"], "one "),
        ("aaab", "aab", "a"),  # A beginning that fails must not hide the next.
        ("ababac", "abac", "ab"),
        ("xaby", ["abc", "by"], "xa"),
        ("xabcd", ["bc", "abcd"], "xa"),  # The first to be complete, however tokens fall.
        ("xabc", ["abc", "bc"], "x"),  # Complete at once: the one that begins first.
        ("two", "two", ""),
        ("the end\n\nUser: hi", "\n\nUser:", "the end"),
        ("naïve 北京 🙂 !", "京", "naïve 北"),
        ("naïve 北京 🙂 !", "🙂", "naïve 北京 "),
    ],
)
def test_text_ends_before_a_stop_string(text: str, stop: str | list[str], expected: str) -> None:
    found, reason, _ = write(text, Settings(stop=stop))
    assert (found, reason) == (expected, "stop")


@pytest.mark.parametrize("stop", ["threes", "One", "tree", ["xyz", " three."]])
def test_text_without_its_stop_string_is_whole(stop: str | list[str]) -> None:
    found, reason, _ = write("one two three", Settings(stop=stop))
    assert (found, reason) == ("one two three", "length")


def test_a_stop_string_is_sought_in_what_is_written_only(generator: Generator) -> None:
    (completion,) = generator.complete([PROMPTS[0]], replace(GREEDY, stop="quick"))
    assert completion.text.startswith(PROMPTS[0])
    assert len(completion.text) > len(PROMPTS[0])


def push_all(stream: TextStream, tokens: list[int]) -> Iterator[str]:
    for token in tokens:
        yield stream.push(token)
    yield stream.finish()


def test_only_what_may_still_change_is_held_back() -> None:
    tokenizer = make_tokenizer()
    letters = [tokenizer.token_to_id(letter) for letter in "abcabd"]
    pieces = list(push_all(TextStream(tokenizer, ["abd"]), letters))
    assert pieces == ["", "", "abc", "", "", "", ""]
    pieces = list(push_all(TextStream(tokenizer, ["abx"]), letters))
    assert pieces == ["", "", "abc", "", "", "abd", ""]
    pieces = list(push_all(TextStream(tokenizer), letters))
    assert pieces == [*"abcabd", ""]


def test_characters_are_shown_when_their_bytes_are_complete() -> None:
    tokenizer = make_tokenizer()
    smile = tokenizer.encode("\N{ROCKET}").ids
    assert len(smile) == 4
    assert list(push_all(TextStream(tokenizer), smile)) == ["", "", "", "\N{ROCKET}", ""]
    cut = list(push_all(TextStream(tokenizer), [*smile[:2], *smile, *smile[:3]]))
    assert "".join(cut) == tokenizer.decode([*smile[:2], *smile, *smile[:3]])
    assert cut[5] == "\N{REPLACEMENT CHARACTER}\N{ROCKET}"


@pytest.mark.parametrize("seed", range(20))
def test_pieces_join_to_the_whole_text_of_random_bytes(generator: Generator, seed: int) -> None:
    tokens = torch.randint(
        1, CONFIG.num_ids, (100,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    whole = generator.tokenizer.decode(tokens)
    assert "".join(push_all(TextStream(generator.tokenizer), tokens)) == whole
    stop = whole[40:42]
    expected = whole[: whole.index(stop)]
    assert "".join(push_all(TextStream(generator.tokenizer, [stop]), tokens)) == expected


@pytest.mark.parametrize("settings", [GREEDY, RANDOM, replace(RANDOM, stop=["a", "the"])])
def test_streamed_pieces_join_to_the_generated_text(
    generator: Generator, settings: Settings
) -> None:
    for prompt in ("", *PROMPTS):
        (completion,) = generator.complete([prompt], settings)
        pieces = list(generator.stream(prompt, settings))
        assert prompt + "".join(pieces) == completion.text


def test_pieces_are_reported_with_the_index_of_their_text(generator: Generator) -> None:
    texts = [*PROMPTS]

    def add(index: int, piece: str) -> None:
        texts[index] += piece

    completions = generator.complete(PROMPTS, replace(RANDOM, batch_size=2), on_text=add)
    assert texts == [completion.text for completion in completions]


def test_prompts_and_settings_are_checked_before_streaming_starts(generator: Generator) -> None:
    with pytest.raises(ValueError, match="context"):
        generator.stream("!" * 500, RANDOM)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, "max_length is 0; expected 1 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0"),
        ({"stop": ["x", ""]}, "a stop string is empty"),
        ({"top_p": 2.0}, "top_p is 2.0"),
    ],
)
def test_settings_without_meaning_are_refused(
    generator: Generator, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generator.generate("one", **settings)


def test_padding_of_the_vocabulary_is_never_drawn() -> None:
    model = make_model(replace(CONFIG, vocab_size=320))
    with torch.no_grad():
        model.lm_head.weight[300:] = model.lm_head.weight[:20] * 3
    (completion,) = Generator(model, make_tokenizer()).complete(["one"], RANDOM)
    assert max(completion.tokens) < 300


def test_sampling_leaves_torchs_random_state_alone_when_seeded(generator: Generator) -> None:
    before = torch.get_rng_state()
    generator.complete(["one"], RANDOM)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_newest_checkpoint_is_loaded(folder: Path) -> None:
    found = load_generator(str(folder.parent), device="cpu")
    expected = load_generator(folder, device="cpu")
    assert found.complete(PROMPTS, GREEDY) == expected.complete(PROMPTS, GREEDY)


def test_a_seed_checkpoint_needs_a_tokenizer(tmp_path: Path, generator: Generator) -> None:
    write_seed_checkpoint(tmp_path / "old", make_model())
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_generator(tmp_path / "old", device="cpu")
    given = load_generator(tmp_path / "old", device="cpu", tokenizer_json=TOKENIZER_JSON)
    assert given.complete(PROMPTS, GREEDY) == generator.complete(PROMPTS, GREEDY)
    (tmp_path / "old" / "tokenizer.json").write_text(TOKENIZER_JSON)
    there = load_generator(tmp_path / "old", device="cpu")
    assert there.complete(PROMPTS, GREEDY) == generator.complete(PROMPTS, GREEDY)


def test_folders_that_cannot_be_sampled_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found nothing"):
        load_generator(tmp_path)
    path = tmp_path / "checkpoint-1"
    save_model(path, make_model(), TOKENIZER_JSON)
    for broken in (b"{}", b"{", b"\xff"):
        (path / "tokenizer.json").write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a readable tokenizer"):
            load_generator(path)
    (path / "tokenizer.json").write_text(TOKENIZER_JSON)
    seal(path)
    flip_byte(path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: damaged"):
        load_generator(path)


def test_unknown_devices_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="device 'gpu' is unknown"):
        load_generator(folder, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no GPU"):
            load_generator(folder, device="cuda")


def test_the_test_sentences_survive_a_round_trip() -> None:
    for sentence in SENTENCES:
        assert write(sentence, GREEDY)[:2] == (sentence, "length")
