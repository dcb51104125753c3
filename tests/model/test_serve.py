"""The server's completions, by OpenAI's own client: texts of `velocity sample`, and their form."""

import json
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM

from model.checkpoints.folder import save_model
from model.checkpoints.seal import seal
from model.decode.generator import Generator
from model.decode.settings import Settings
from tests.servers.model_server import RunningServer, run_server
from tests.tiny import TOKENIZER_JSON, make_model

MODEL = "checkpoint-7"
PROMPTS = ["The quick brown fox", "A", "naïve café 北京 🙂"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("run") / MODEL
    save_model(folder, make_model(), TOKENIZER_JSON)
    seal(folder)
    with run_server(folder) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def generator(server: RunningServer) -> Generator:
    return server.served.generator


@pytest.mark.parametrize(
    "sent",
    [
        {"temperature": 0},
        {"temperature": 1.5, "seed": 3},
        {"seed": 3, "top_k": 5, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.2},
        {"seed": 4, "presence_penalty": 1.5, "frequency_penalty": -1, "logit_bias": {"70": 5}},
        {"seed": 5, "no_repeat_ngram_size": 2, "min_tokens": 5, "bad_words": ["The"]},
    ],
)
def test_texts_are_those_of_velocity_sample(
    client: OpenAI, generator: Generator, sent: dict[str, Any]
) -> None:
    names = {"min_tokens": "min_new_tokens"}
    values: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    values |= {names.get(name, name): value for name, value in sent.items()}
    if "logit_bias" in values:
        values["logit_bias"] = {int(k): v for k, v in values["logit_bias"].items()}
    settings = Settings(**values, max_new_tokens=12, num_return_sequences=2)
    expected = generator.complete(PROMPTS, settings)
    answer = client.completions.create(
        model=MODEL, prompt=PROMPTS, max_tokens=12, n=2, echo=True, extra_body=sent
    )
    assert [choice.text for choice in answer.choices] == [one.text for one in expected]
    assert [choice.index for choice in answer.choices] == [*range(6)]
    num_prompt = sum(len(generator.tokenizer.encode(prompt).ids) for prompt in PROMPTS)
    written = sum(len(one.tokens) - one.num_prompt_tokens for one in expected)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == num_prompt
    assert answer.usage.completion_tokens == written
    assert answer.usage.total_tokens == num_prompt + written


def test_a_stream_has_the_same_texts_in_pieces(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": PROMPTS, "max_tokens": 20, "seed": 1, "n": 2}
    whole = client.completions.create(**asked)
    texts, ends, usage = [""] * 6, [""] * 6, None
    with client.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for part in stream:
            assert part.id.startswith("cmpl-")
            for choice in part.choices:
                texts[choice.index] += choice.text
                ends[choice.index] = choice.finish_reason
            usage = part.usage
    assert texts == [choice.text for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_the_events_of_a_stream_are_ascii_and_end_with_done(server: RunningServer) -> None:
    asked = {"prompt": PROMPTS[2], "max_tokens": 9, "temperature": 0}
    answer = server.post("/v1/completions", **asked, echo=True, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content.isascii()
    *events, last, nothing = answer.text.split("\n\n")
    assert (last, nothing) == ("data: [DONE]", "")
    parts = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len(parts) > 1
    assert parts[0]["choices"][0]["text"].startswith(PROMPTS[2])
    assert parts[-1]["choices"][0]["finish_reason"] == "length"


def test_a_prompt_may_be_token_ids(client: OpenAI, generator: Generator) -> None:
    ids = [generator.tokenizer.encode(prompt).ids for prompt in PROMPTS]
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 8, "seed": 2, "echo": True}
    texts = [one.text for one in client.completions.create(prompt=PROMPTS, **asked).choices]
    assert [one.text for one in client.completions.create(prompt=ids, **asked).choices] == texts
    assert client.completions.create(prompt=ids[0], **asked).choices[0].text == texts[0]


def test_a_stop_string_ends_a_text_before_it(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "one", "max_tokens": 30, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[11:13]
    answer = client.completions.create(**asked, stop=["never there", stop])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].model_extra == {"ended_by": "stop"}


def test_temperature_0_stays_0_and_no_seed_is_another_each_time(client: OpenAI) -> None:
    def write(**fields: Any) -> str:
        return (
            client.completions.create(model=MODEL, prompt="one", max_tokens=20, **fields)
            .choices[0]
            .text
        )

    assert write(temperature=0) == write(temperature=0, seed=5)
    varied = {"temperature": 2, "extra_body": {"top_k": 0, "min_tokens": 20}}
    assert write(**varied) != write(**varied)


def read_scores(generator: Generator, tokens: list[int]) -> torch.Tensor:
    """The log-probabilities (T, V) of the token after each, by the model alone."""
    with torch.inference_mode():
        logits: torch.Tensor = generator.model(torch.tensor([tokens]))
    return logits[0, :, : generator.num_words].log_softmax(-1)


def test_log_probabilities_are_the_models(client: OpenAI, generator: Generator) -> None:
    prompt = PROMPTS[2]
    answer = client.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=6,
        seed=1,
        logprobs=3,
        echo=True,
        extra_body={"return_token_ids": True},
    )
    [choice] = answer.choices
    extra: dict[str, Any] = choice.model_extra or {}
    tokens = extra["prompt_token_ids"] + extra["token_ids"]
    assert extra["prompt_token_ids"] == generator.tokenizer.encode(prompt).ids
    scores = read_scores(generator, tokens)
    found = choice.logprobs
    assert found is not None
    assert found.token_logprobs is not None
    assert found.tokens is not None
    assert found.top_logprobs is not None
    assert found.text_offset is not None
    by_text: list[dict[str, int]] = (found.model_extra or {})["top_token_ids"]
    ids = [[*places.values()] for places in by_text]
    assert found.token_logprobs[0] is None
    for place, token in enumerate(tokens[1:], 1):
        row = scores[place - 1]
        assert found.token_logprobs[place] == pytest.approx(float(row[token]), abs=1e-4)
        best = row.topk(3).indices.tolist()
        assert ids[place] == (best if token in best else [*best, token])
        assert by_text[place].keys() == found.top_logprobs[place].keys()
        assert [*found.top_logprobs[place].values()] == pytest.approx(
            [float(row[id]) for id in ids[place]], abs=1e-4
        )
    spelled = [
        bytes(int(byte, 16) for byte in token[8:].split("\\x"))
        if token[:6] == "bytes:"
        else token.encode()
        for token in found.tokens
    ]
    assert b"".join(spelled).decode(errors="replace") == choice.text
    # A token of the prompt begins where those before it end, or within a character of theirs.
    for n in range(len(extra["prompt_token_ids"])):
        before = b"".join(spelled[:n]).decode(errors="ignore")
        assert found.text_offset[n] - len(before) in (0, 1)
    assert found.text_offset[len(extra["prompt_token_ids"])] == len(prompt)


def test_a_prompt_can_be_measured_without_writing(client: OpenAI, generator: Generator) -> None:
    ids = generator.tokenizer.encode(PROMPTS[0]).ids
    answer = client.completions.create(
        model=MODEL, prompt=ids, max_tokens=0, echo=True, logprobs=1, temperature=0
    )
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == (PROMPTS[0], "length")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    scores = read_scores(generator, ids)
    expected = [float(scores[i, token]) for i, token in enumerate(ids[1:])]
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_a_text_as_long_as_the_context_can_be_measured(
    server: RunningServer, generator: Generator
) -> None:
    ids = [*range(70, 70 + generator.context)]
    asked: dict[str, Any] = {"max_tokens": 0, "echo": True, "logprobs": 0}
    [choice] = server.post("/v1/completions", prompt=ids, **asked).json()["choices"]
    scores = read_scores(generator, ids)
    expected = [float(scores[i, token]) for i, token in enumerate(ids[1:])]
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    assert choice["finish_reason"] == "length"
    for prompt, num_new, param in ((ids, 1, "prompt"), ([*ids, 1], 0, "prompt")):
        answer = server.post("/v1/completions", prompt=prompt, **asked | {"max_tokens": num_new})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)


def test_lm_eval_measures_what_transformers_does(server: RunningServer) -> None:
    """The requests of lm-eval 0.4.13's local-completions, and what it reads in their answers."""
    generator, llama = server.served.generator, AutoModelForCausalLM.from_pretrained(server.folder)
    contexts = [generator.tokenizer.encode(prompt).ids for prompt in PROMPTS]
    rows = [[*context, *generator.tokenizer.encode(" text").ids] for context in contexts]
    greedy = generator.complete(contexts, Settings(do_sample=False, max_new_tokens=2))
    contexts += contexts[:1]
    rows.append([*greedy[0].tokens])
    answer = server.post(
        "/v1/completions",
        model=MODEL,
        prompt=rows,
        temperature=0,
        max_tokens=1,
        logprobs=1,
        seed=1234,
        echo=True,
    ).json()
    choices = sorted(answer["choices"], key=itemgetter("index"))
    for context, row, choice in zip(contexts, rows, choices, strict=True):
        found = choice["logprobs"]
        own = found["token_logprobs"][len(context) : -1]
        best = [max(top.values()) for top in found["top_logprobs"][len(context) : -1]]
        with torch.inference_mode():
            scores = llama(torch.tensor([row])).logits[0].log_softmax(-1)
        expected = [float(scores[i - 1, row[i]]) for i in range(len(context), len(row))]
        assert own == pytest.approx(expected, abs=1e-4)
        assert (own == best) == (row == rows[-1])
        # The token that is written comes from the same reading.
        one = Settings(do_sample=False, max_new_tokens=1)
        assert choice["text"] == generator.complete([row], one)[0].text
    asked = {"temperature": 0, "max_tokens": 20, "seed": 1234, "stop": ["\n", "<|endoftext|>"]}
    written = server.post("/v1/completions", model=MODEL, prompt=contexts[:2], **asked).json()
    expected = generator.complete(PROMPTS[:2], Settings(do_sample=False, max_new_tokens=20))
    for choice, prompt, one in zip(written["choices"], PROMPTS, expected, strict=False):
        assert choice["text"] == one.text.removeprefix(prompt).partition("\n")[0]
