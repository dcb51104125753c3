"""`velocity chat`: a conversation typed on a terminal, or read from a pipe, a message a line."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from model.chat.builtin import BUILT_IN
from model.chat.encode import ChatEncoder
from model.chat.template import Asked, ChatTemplate, RendererCrash, RenderError
from model.checkpoints.chat_template import read_chat_template, read_tokens
from model.checkpoints.seal import CheckpointError
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.sample.console import Show
from model.sample.conversation import Conversation, Message, Turn
from model.sample.options import Chat
from model.sample.prompts import decode_text, read_text
from model.sample.repl import Console, Repl

GREETING = "velocity: type a message; /help lists commands, Ctrl-C stops an answer, Ctrl-D ends"
COMMANDS = {
    "/settings": "Show all settings.",
    "/system X": "The system prompt from here on; without X there is none.",
    "/history": "Show the conversation.",
    "/retry": "Write the last answer again.",
    "/undo": "Forget the last message and its answer.",
    "/reset": "Begin a new conversation; system prompt and settings stay.",
    "/save FILE": "Add the conversation to a file, as a line of JSON for velocity prep --chat.",
}
# A chat has one answer, and its prompt grows, so that only new tokens are worth counting.
HIDDEN = ("num_return_sequences", "max_length", "min_length")


@contextmanager
def open_conversation(generator: Generator, opening: Chat, say: Show) -> Iterator[Conversation]:
    """A conversation that nothing was said in yet.

    CheckpointError if the folder has no chat template and none is given.
    """
    system = opening.system
    if opening.system_file is not None:
        system = read_text(opening.system_file).strip()
    template = choose_template(generator, opening.template)
    encoder = ChatEncoder(template, generator.tokenizer.to_str())
    try:
        with naming_faults():
            end = find_end_of_turn(encoder)
        if end is not None:
            generator.ends |= {end}
        yield Conversation(generator, partial(encode_prompt, encoder), system, say)
    finally:
        template.close()


def choose_template(generator: Generator, given: str | None) -> ChatTemplate:
    """The template of a model, or the one that is given; CheckpointError if there is none."""
    folder = generator.words or generator.folder
    assert folder is not None
    stored = read_chat_template(folder)
    if given is None:
        if stored is not None:
            return ChatTemplate(stored.source, stored.tokens)
        raise CheckpointError(
            f"{folder}: has no chat template, so it was not trained on chats; name the template "
            "that it was trained with by --template, or write texts with velocity sample"
        )
    lacking = [
        token
        for token in (BUILT_IN[given].specials if given in BUILT_IN else ())
        if generator.tokenizer.token_to_id(token) is None
    ]
    if lacking:
        raise CheckpointError(
            f"{folder}: its tokenizer has no {' and no '.join(lacking)}, which the template "
            f"{given} writes; name the template that it was trained with"
        )
    source = BUILT_IN[given].source if given in BUILT_IN else read_text(given)
    return ChatTemplate(source, read_tokens(folder))


def find_end_of_turn(encoder: ChatEncoder) -> int | None:
    """The special token that the template ends an answer with; None if it is none."""
    chat = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    [text] = encoder.template.render_all([Asked(chat)])
    token = None if isinstance(text, RenderError) else encoder.find_last(text)
    if token is None:
        return None
    found: int | None = encoder.tokenizer.token_to_id(encoder.guard.names[token])
    return found


def encode_prompt(encoder: ChatEncoder, messages: Sequence[Message]) -> list[int]:
    """The ids of the prompt; ValueError for messages that the template does not take."""
    with naming_faults():
        return encoder.encode_prompt(messages)


@contextmanager
def naming_faults() -> Iterator[None]:
    """What a template does not take, and how its process ends, as a ValueError of one line."""
    try:
        yield
    except RenderError as error:
        raise ValueError(f"the chat template does not take these messages: {error}") from None
    except RendererCrash as error:
        raise ValueError(f"the process that runs the chat template crashed: {error}") from None


class ChatRepl(Repl):
    """Reads messages and commands from a terminal until its end."""

    greeting = GREETING
    commands: Mapping[str, str] = COMMANDS
    hidden: Collection[str] = HIDDEN

    def __init__(self, conversation: Conversation, settings: Settings, console: Console) -> None:
        super().__init__(conversation.generator, settings, console)
        self.conversation = conversation
        self.num_retries = 0  # Of the last turn.

    def _take(self, text: str) -> None:
        if text.strip():
            self.num_retries = 0
            self._ask(text)

    def _ask(self, text: str, retry: int = 0) -> None:
        """Put a question; a retry of it, counted from 1, has another seed."""
        settings = self.settings
        if settings.seed is not None:
            settings = replace(settings, seed=settings.seed + retry)
        show = self.show if self.streams else lambda _: None
        turn = self.conversation.ask(text, settings, show, again=retry > 0)
        self.show("\n" if self.streams else turn.answer + "\n")
        self.conversation.say_end(turn)

    def _run(self, command: str, value: str) -> bool:
        conversation = self.conversation
        if command == "/settings":
            self._show_settings()
        elif command == "/system":
            conversation.system = value or None
        elif command == "/history":
            for message in conversation.list_messages():
                self.show(f"{message['role']}: {message['content']}\n")
        elif command == "/retry":
            question = self._find_last("write again").question
            self.num_retries += 1
            self._ask(question, self.num_retries)
        elif command == "/undo":
            self._find_last("undo")
            conversation.undo()
            self.num_retries = 0
        elif command == "/reset":
            conversation.reset()
        elif command == "/save":
            self._save(value)
        else:
            return False
        return True

    def _find_last(self, wish: str) -> Turn:
        """The last turn; ValueError if there is none to do something with."""
        if not self.conversation.turns:
            raise ValueError(f"there is nothing to {wish}; type a message")
        return self.conversation.turns[-1]

    def _save(self, name: str) -> None:
        """Add the conversation to a file; ValueError if that cannot be done."""
        self._find_last("save")
        if not name:
            raise ValueError("/save needs the name of a file, such as /save chats.jsonl")
        path = Path(name).expanduser()
        messages = self.conversation.list_messages()
        line = json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}; nothing was saved") from None
        self.say(f"velocity: {path}: added a conversation of {len(messages)} messages")
        cut = [n for n, turn in enumerate(self.conversation.turns, 1) if not turn.is_whole]
        if cut:
            self.say(
                f"velocity: its answer {cut[0]} was cut short; a model that trains on it learns "
                "to end there"
            )


def chat_over_lines(
    conversation: Conversation,
    settings: Settings,
    lines: Iterable[bytes],
    show: Show,
    as_json: bool = False,
    streams: bool = True,
) -> None:
    """Answer each line, which is a message; blank ones are passed over.

    As JSON, an object a line: role, content, finish_reason, the numbers of tokens, and how many
    turns the model no longer sees. Raises ValueError, naming the line, for one that has no answer.
    """
    for number, line in enumerate(lines, 1):
        place = f"standard input: line {number:,}"
        question = decode_text(line, place).removesuffix("\n").removesuffix("\r")
        if not question.strip():
            continue
        try:
            is_shown = streams and not as_json
            turn = conversation.ask(question, settings, show if is_shown else lambda _: None)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if as_json:  # Which says why an answer ended.
            show(describe_turn(turn, conversation))
        else:
            show("\n" if is_shown else turn.answer + "\n")
            conversation.say_end(turn)


def describe_turn(turn: Turn, conversation: Conversation) -> str:
    """An answer as a line of JSON, in ASCII for any reader."""
    values = {
        "role": "assistant",
        "content": turn.answer,
        "finish_reason": turn.ended_by,
        "prompt_tokens": turn.num_prompt_tokens,
        "completion_tokens": turn.num_tokens,
        "turns_left_out": conversation.first,
    }
    return json.dumps(values) + "\n"
