"""`velocity chat`: what the model is given of a conversation, on a terminal and through a pipe."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from model.checkpoints.folder import save_model
from model.checkpoints.seal import CheckpointError
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.generate import load_generator
from model.sample.chat import ChatRepl, chat_over_lines, open_conversation
from model.sample.conversation import Conversation
from model.sample.options import Chat
from model.sample.repl import Console
from tests.model.test_repl import ROOT, SECONDS, Terminal
from tests.tiny import CONFIG, TOKENIZER_JSON, make_model

TOKENS = ["<|im_start|>", "<|im_end|>"]
START, END = 300, 301
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SYSTEM = {"role": "system", "content": "Be short."}


def write_folder(folder: Path, context: int = 512, template: str | None = CHATML) -> Path:
    """A folder as training on chats saves it: its template, and the token that ends a turn."""
    tokenizer = Tokenizer.from_str(TOKENIZER_JSON)
    tokenizer.add_special_tokens(TOKENS)
    config = replace(CONFIG, vocab_size=302, max_position_embeddings=context)
    save_model(folder, make_model(config), tokenizer.to_str())
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    path = folder / "generation_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"eos_token_id": [END, 0]}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("run") / "chat")


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return load_generator(folder, "cpu")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def conversation(generator: Generator, told: list[str]) -> Iterator[Conversation]:
    with open_conversation(generator, Chat(), told.append) as opened:
        yield opened


class Script:
    """Stands for the model: writes given answers, and keeps the prompts that it was given."""

    def __init__(self, generator: Generator, answers: Sequence[str | type[BaseException]]) -> None:
        self.generator, self.answers = generator, list(answers)
        self.context = generator.context
        self.prompts, self.settings = list[str](), list[Settings]()

    def start(self, prompts: Sequence[list[int]], settings: Settings) -> Any:
        self.prompts += [
            self.generator.tokenizer.decode(prompt, skip_special_tokens=False) for prompt in prompts
        ]
        self.settings.append(settings)
        return self.generator.start(prompts, settings)

    def write(self, drafts: Any) -> Iterator[Any]:
        answer = self.answers.pop(0)
        ids = self.generator.tokenizer.encode(answer if isinstance(answer, str) else "cut").ids
        for token in ids:
            yield drafts[0], drafts[0].add(token)
        if not isinstance(answer, str):
            raise answer
        yield drafts[0], drafts[0].add(END)


def converse(
    conversation: Conversation, answers: Sequence[Any], *lines: str | type[BaseException]
) -> tuple[str, list[str], Script]:
    """What is shown and said to these lines, where the model would give these answers."""
    shown, said, left = list[str](), list[str](), iter(lines)

    def read(_: str) -> str:
        line = next(left, EOFError)
        if not isinstance(line, str):
            raise line
        return line

    script = Script(conversation.generator, answers)
    conversation.generator = script  # type: ignore[assignment]
    conversation.say = said.append
    console = Console(shown.append, said.append, read)
    ChatRepl(conversation, Settings(seed=5), console).run()
    return "".join(shown), said[1:], script


def say(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


ASK = "<|im_start|>assistant\n"


def test_the_model_is_given_the_whole_conversation_and_the_system_prompt(
    conversation: Conversation,
) -> None:
    shown, said, script = converse(
        conversation, ["two", "four"], "/system Be short.", "one", "", "three", "/history"
    )
    first = say("system", "Be short.") + say("user", "one")
    assert script.prompts == [
        first + ASK,
        first + say("assistant", "two") + say("user", "three") + ASK,
    ]
    assert said == []
    history = "system: Be short.\nuser: one\nassistant: two\nuser: three\nassistant: four\n"
    assert shown == "two\nfour\n" + history + "\n"


def test_the_prompt_is_the_one_that_transformers_makes(
    conversation: Conversation, folder: Path
) -> None:
    messages = [SYSTEM, {"role": "user", "content": "naïve café\n\n it's "}]
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert conversation.encode(messages) == expected


def test_the_end_of_a_turn_ends_the_answer(conversation: Conversation) -> None:
    bias = Settings(logit_bias={END: 100}, max_new_tokens=50)
    turn = conversation.ask("one", bias, lambda _: None)
    assert (turn.answer, turn.ended_by, turn.num_tokens) == ("", "end_of_text", 1)
    assert conversation.turns == (turn,)


def test_retry_undo_and_reset(conversation: Conversation) -> None:
    _, said, script = converse(
        conversation,
        ["a", "b", "c", "d", "e", "f"],
        *("one", "two", "/retry", "/retry", "/undo", "three", "/reset", "four"),
    )
    one, two = say("user", "one") + say("assistant", "a"), say("user", "two")
    assert script.prompts == [
        say("user", "one") + ASK,
        *[one + two + ASK] * 3,
        one + say("user", "three") + ASK,
        say("user", "four") + ASK,
    ]
    assert [settings.seed for settings in script.settings] == [5, 5, 6, 7, 5, 5]
    assert [turn.answer for turn in conversation.turns] == ["f"]
    assert said == []


def test_a_stopped_answer_stays_as_far_as_it_came(conversation: Conversation) -> None:
    _, said, script = converse(conversation, [KeyboardInterrupt, "done"], "one", "two")
    assert said == ["velocity: stopped"]
    assert say("assistant", "cut") + say("user", "two") in script.prompts[1]
    assert [turn.is_whole for turn in conversation.turns] == [False, True]


def test_a_question_that_was_stopped_before_its_answer_began_is_gone(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("model.decode.generator.Batch.step", stop)
    with pytest.raises(KeyboardInterrupt):
        conversation.ask("one", Settings(), print)
    assert conversation.turns == ()


def test_the_oldest_turns_are_left_out_where_the_context_is_full(
    tmp_path: Path, told: list[str]
) -> None:
    generator = load_generator(write_folder(tmp_path / "short", context=128), "cpu")
    with open_conversation(generator, Chat(system="Be short."), told.append) as conversation:
        lines = [f"message {number}" for number in range(6)]
        _, said, script = converse(conversation, ["yes"] * 6, *lines)
        assert len(conversation.turns) == 6
        system = say("system", "Be short.")
        assert all(prompt.startswith(system) for prompt in script.prompts)
        assert all(
            say("user", line) + ASK in prompt
            for line, prompt in zip(lines, script.prompts, strict=True)
        )
        assert "message 0" not in script.prompts[-1]
        # Room for an answer is left.
        sizes = [len(generator.tokenizer.encode(prompt).ids) for prompt in script.prompts]
        assert conversation.first > 0
        assert said[0] == (
            "velocity: the model no longer sees the first turn: its context of 128 tokens holds "
            "no more"
        )
        assert len(said) == conversation.first
        assert sizes
        _, said, _ = converse(conversation, [], "!" * 500)
        assert "its context is 128; shorten them" in said[0].replace("the model's", "its")
        assert len(conversation.turns) == 6


def test_a_full_context_ends_an_answer_which_is_said(tmp_path: Path, told: list[str]) -> None:
    generator = load_generator(write_folder(tmp_path / "short", context=48), "cpu")
    lines, shown = [b"one\n"], list[str]()
    with open_conversation(generator, Chat(), told.append) as conversation:
        settings = Settings(seed=1, min_new_tokens=48)
        chat_over_lines(conversation, settings, lines, shown.append, streams=False)
        [turn] = conversation.turns
    assert turn.ended_by == "context"
    assert shown == [turn.answer + "\n"]
    assert told == [
        "velocity: the answer ends here because the model's context, 48 tokens, is full"
    ]


def test_save_writes_messages_line_by_line(conversation: Conversation, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    _, said, _ = converse(
        conversation,
        ["zwei ü", KeyboardInterrupt],
        *("/save", "/system Be short.", "one", f"/save {path}", "two", f"/save {path}"),
        f"/save {tmp_path}",
    )
    lines = [json.loads(line)["messages"] for line in path.read_text("utf-8").splitlines()]
    whole = [SYSTEM, {"role": "user", "content": "one"}, {"role": "assistant", "content": "zwei ü"}]
    assert lines[0] == whole
    assert lines[1][3:] == [
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "cut"},
    ]
    assert said[0] == "velocity: there is nothing to save; type a message"
    assert said[1] == f"velocity: {path}: added a conversation of 3 messages"
    assert "its answer 2 was cut short" in said[4]
    assert said[5] == f"velocity: {tmp_path}: Is a directory; nothing was saved"


def test_what_the_template_refuses_is_said_and_forgotten(
    generator: Generator, tmp_path: Path
) -> None:
    path = tmp_path / "strict.jinja"
    refusal = "{{ raise_exception('no system prompt, please') }}"
    path.write_text("{% if messages[0].role == 'system' %}" + refusal + "{% endif %}" + CHATML)
    with open_conversation(generator, Chat(template=str(path)), print) as conversation:
        _, said, _ = converse(
            conversation, ["b"], "/retry", "/undo", "/system A", "one", "/system", "two"
        )
        assert said == [
            "velocity: there is nothing to write again; type a message",
            "velocity: there is nothing to undo; type a message",
            "velocity: the chat template does not take these messages: TemplateError: no system "
            "prompt, please",
        ]
        assert [turn.question for turn in conversation.turns] == ["two"]


def test_a_folder_without_a_template_says_what_to_do(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "plain", template=None)
    generator = load_generator(folder, "cpu")
    with (
        pytest.raises(CheckpointError, match=r"has no chat template.*--template"),
        open_conversation(generator, Chat(), print),
    ):
        pass
    (tmp_path / "own.jinja").write_text(CHATML)
    given = Chat(template=str(tmp_path / "own.jinja"), system_file=str(tmp_path / "system.txt"))
    (tmp_path / "system.txt").write_text("Be short.\n")
    with open_conversation(generator, given, print) as conversation:
        assert conversation.list_messages() == [SYSTEM]
        assert conversation.encode([SYSTEM])[0] == START


def test_a_template_of_ours_is_known_by_its_name_and_says_where_a_turn_ends(
    tmp_path: Path,
) -> None:
    folder = write_folder(tmp_path / "plain", template=None)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 0}))
    generator = load_generator(folder, "cpu")
    assert END not in generator.ends
    with open_conversation(generator, Chat(template="chatml"), print) as conversation:
        assert conversation.encode([SYSTEM])[0] == START
        assert END in generator.ends
    save_model(tmp_path / "base", make_model(), TOKENIZER_JSON)
    base = load_generator(tmp_path / "base", "cpu")
    with (
        pytest.raises(CheckpointError, match=r"tokenizer has no <\|im_start\|> and no <\|im_end"),
        open_conversation(base, Chat(template="chatml"), print),
    ):
        pass
    with open_conversation(base, Chat(template="plain"), print) as conversation:
        prompt = conversation.encode([{"role": "user", "content": "one"}])
        assert base.tokenizer.decode(prompt).startswith("User:\none\n")


def test_a_message_that_spells_the_end_of_a_turn_does_not_end_it(
    conversation: Conversation,
) -> None:
    ids = conversation.encode([{"role": "user", "content": "one<|im_end|>two"}])
    assert (ids.count(END), ids.count(START)) == (1, 2)


def test_a_terminal_chats(folder: Path, tmp_path: Path) -> None:
    words = ("chat", "--ckpt", str(folder), "--seed", "3", "--system", "Be short.")
    with closing(Terminal(*words, state=tmp_path)) as terminal:
        terminal.await_text("velocity: type a message.*> ")
        terminal.type("/temperature 0\n/max-new-tokens 5\none\n")
        terminal.await_text("> one\r\n")
        terminal.await_text("\r\n> ")
        terminal.type("/max-new-tokens\n/min-new-tokens 400\n/temperature 50\n/top-k 0\n/top-p 1\n")
        terminal.type("two\n")
        terminal.await_text(r"> two\r\n.{40}")
        terminal.type("\x03")
        terminal.await_text("velocity: stopped\r\n> ")
        terminal.type(f"/save {tmp_path}/chat.jsonl\n")
        terminal.await_text("added a conversation of 5 messages.*> ")
        terminal.type("\x04")
        assert terminal.process.wait(SECONDS) == 0
    history = (tmp_path / "velocity" / "chat-history").read_text()
    assert "two\n" in history
    [line] = (tmp_path / "chat.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["messages"][0] == SYSTEM


def run_chat(*words: str, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", "chat", *words],
        input=text,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=SECONDS,
    )


def test_a_pipe_gives_a_message_a_line(folder: Path, conversation: Conversation) -> None:
    settings = ("--temperature", "0", "--max-new-tokens", "6")
    done = run_chat("--ckpt", str(folder), *settings, "--json", text="/one\r\n\ntwo\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    same = Settings(temperature=0, max_new_tokens=6)
    for question, answer in zip(("/one", "two"), answers, strict=True):
        turn = conversation.ask(question, same, lambda _: None)
        assert answer == {
            "role": "assistant",
            "content": turn.answer,
            "finish_reason": turn.ended_by,
            "prompt_tokens": turn.num_prompt_tokens,
            "completion_tokens": turn.num_tokens,
            "turns_left_out": 0,
        }
    assert answers[1]["prompt_tokens"] > answers[0]["prompt_tokens"] + 6
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("options", "settings", "says"),
    [
        ({}, {"num_return_sequences": 2}, "--num-samples is 2; a chat has one answer"),
        ({}, {"max_length": 20}, "--max-length counts the whole chat; give --max-new-tokens"),
        ({}, {"min_length": 20}, "--min-length counts the whole chat; give --min-new-tokens"),
        ({}, {"logprobs": 1}, "--logprobs is for velocity sample --json; leave it out"),
        ({"system": "a", "system_file": "b"}, {}, "--system and --system-file: give one of them"),
    ],
)
def test_options_that_no_chat_has_are_refused(
    options: dict[str, str], settings: dict[str, int], says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Chat(**options).check(Settings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["system_file", "template"])
def test_a_file_that_is_not_there_is_named(generator: Generator, option: str) -> None:
    with (
        pytest.raises(OSError, match=r"no\.txt"),
        open_conversation(generator, Chat(**{option: "no.txt"}), print),
    ):
        pass


def test_what_is_wrong_is_told_in_a_line(folder: Path) -> None:
    # A few tokens: an answer that fills the context says so in a line of its own.
    settings = ("--max-new-tokens", "6")
    done = run_chat("--ckpt", str(folder), *settings, text="one\n" + "!" * 2000 + "\n")
    [line] = done.stderr.splitlines()
    assert done.returncode == 1
    assert "standard input: line 2: this message and the system prompt have" in line
