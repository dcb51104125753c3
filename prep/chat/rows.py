"""The rows of a source as chats: which format they have, by their keys, and their messages.

    messages        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    conversations   [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    prompt          "Hi", or messages, and `completion`: what is answered, which is trained on
    instruction     "Translate.", maybe `input`: "Hallo", `system`, and `output`: "Hello."
    chosen          the better answer, and `rejected`: the worse one; `prompt` may be before both,
                    or they are whole chats that begin alike

What is not one of them is a bad document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.chat.encode import ASSISTANT, ROLES, Chat, Message
from shards.disk.json_files import MAX_DEPTH, check_depth
from shards.schema import CONVERSATIONS, PREFERENCES

Row = dict[str, Any]
USER, SYSTEM = "user", "system"
# Formats by the keys that tell them, the clearest first.
FORMATS = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "chosen and rejected": ("chosen", "rejected"),
    "prompt and completion": ("prompt", "completion"),
    "instruction and output": ("instruction", "output"),
}
EXPECTED = ", ".join(FORMATS)
# Who speaks, in `conversations`.
SPEAKERS = {
    "human": USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
    **{role: role for role in ROLES},
}
# Of a message: what is not handed on to the template beside its role and content.
OWN_KEYS = ("role", "content", "weight")
MAX_SHOWN = 60


class BadRow(Exception):
    """A row that is no chat: what was found and what was expected, and what it is counted under."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ChatRow:
    """A row as chats: one, or a pair of which the first is the better one."""

    format: str
    chats: tuple[Chat, ...]

    @property
    def kind(self) -> str:
        """CONVERSATIONS or PREFERENCES."""
        return find_kind(self.format)


def find_kind(form: str) -> str:
    """What rows of a format are: conversations or preferences."""
    return PREFERENCES if "rejected" in FORMATS[form] else CONVERSATIONS


def parse_row(row: Row) -> ChatRow:
    """A row as chats; BadRow if it is in no known format."""
    try:
        check_depth(row)  # Before anything recursive walks it.
    except RecursionError:
        raise BadRow(
            f"is nested more than {MAX_DEPTH} deep; expected messages", "nested too deeply"
        ) from None
    form = find_format(row)
    if row.get("tools"):
        raise BadRow(
            "has tools, the descriptions of functions, which are not given to templates; expected "
            "no such key, or the descriptions as text in the system prompt",
            "tools",
        )
    return ChatRow(form, tuple(PARSERS[form](row)))


def find_format(row: Row) -> str:
    """The format of a row; BadRow if its keys are those of none."""
    present = {key for key, value in row.items() if value is not None}
    for form, keys in FORMATS.items():
        if present.issuperset(keys):
            return form
    found = ", ".join(map(repr, sorted(present)))[:MAX_SHOWN]
    raise BadRow(f"has the keys {found or 'of an empty row'}; expected {EXPECTED}", "no chat")


def parse_messages(row: Row) -> list[Chat]:
    """A chat in OpenAI's form; `system` may be beside it."""
    messages = read_messages(row["messages"], "messages")
    return [make_chat(read_system(row), messages, row["messages"], "messages")]


def make_chat(
    before: list[Message], messages: list[Message], turns: Sequence[Row], name: str
) -> Chat:
    """A chat of a system prompt, if there is one beside the turns, and of their messages.

    Turns with `weight` 0, as OpenAI has them, are read and not trained on.
    """
    if before and messages and messages[0]["role"] == SYSTEM:
        raise BadRow(
            f"has a system prompt under system and another one in {name}[0]; expected one of them",
            "two system prompts",
        )
    left_out = set()
    for place, turn in enumerate(turns):
        weight = turn.get("weight")
        if weight not in (None, 0, 1):
            raise BadRow(f"{name}[{place}].weight is {show(weight)}; expected 0 or 1", "weight")
        if weight == 0 and weight is not None:
            left_out.add(len(before) + place)
    return Chat([*before, *messages], left_out=frozenset(left_out))


def parse_conversations(row: Row) -> list[Chat]:
    """A chat in ShareGPT's form; `system` may be beside it."""
    turns = expect_list(row["conversations"], "conversations")
    before = read_system(row)
    messages: list[Message] = []
    for place, turn in enumerate(turns):
        name = f"conversations[{place}]"
        if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
            raise BadRow(f"{name} is {show(turn)}; expected an object with from and value", "turn")
        role = SPEAKERS.get(turn["from"]) if isinstance(turn["from"], str) else None
        if role is None:
            raise BadRow(
                f"{name} is from {show(turn['from'])}; expected one of {', '.join(SPEAKERS)}",
                "role",
            )
        messages.append(make_message(role, read_text(turn["value"], f"{name}.value")))
    return [make_chat(before, messages, turns, "conversations")]


def parse_completion(row: Row) -> list[Chat]:
    """A prompt and what was answered, which alone is trained on."""
    if row.get("label") is False:
        raise BadRow(
            "has label false, KTO's mark of an answer to be avoided; expected answers to learn "
            "from, so leave such rows out",
            "answer to be avoided",
        )
    prompt = read_side(row["prompt"], "prompt", USER)
    return [Chat([*prompt, *read_side(row["completion"], "completion", ASSISTANT)], len(prompt))]


def parse_instruction(row: Row) -> list[Chat]:
    """Alpaca's form: an instruction, maybe an input to it, and the output."""
    history = row.get("history") or []
    messages = read_system(row)
    for place, pair in enumerate(expect_list(history, "history")):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"history[{place}] is {show(pair)}; expected two texts", "turn")
        for role, text in zip((USER, ASSISTANT), pair, strict=True):
            messages.append(make_message(role, read_text(text, f"history[{place}]")))
    asked = read_text(row["instruction"], "instruction")
    if more := read_text(row.get("input") or "", "input"):
        asked = f"{asked}\n\n{more}"
    output = read_text(row["output"], "output")
    return [Chat([*messages, make_message(USER, asked), make_message(ASSISTANT, output)])]


def parse_preference(row: Row) -> list[Chat]:
    """A better and a worse answer to a prompt, which may be what both begin with."""
    sides = [read_side(row[name], name, ASSISTANT) for name in ("chosen", "rejected")]
    if row.get("prompt") is not None:
        prompt = read_side(row["prompt"], "prompt", USER)
        if all(side[: len(prompt)] == prompt for side in sides):
            sides = [side[len(prompt) :] for side in sides]  # Whole chats, beside their prompt.
    else:
        shared = 0
        while all(len(side) > shared for side in sides) and sides[0][shared] == sides[1][shared]:
            shared += 1
        prompt, sides = sides[0][:shared], [side[shared:] for side in sides]
    if not prompt:
        raise BadRow("chosen and rejected share no prompt, and there is no key prompt", "prompt")
    if not all(sides) or sides[0] == sides[1]:
        raise BadRow("chosen and rejected are the same; expected two answers", "same answers")
    return [Chat([*prompt, *side], len(prompt)) for side in sides]


PARSERS = {
    "messages": parse_messages,
    "conversations": parse_conversations,
    "chosen and rejected": parse_preference,
    "prompt and completion": parse_completion,
    "instruction and output": parse_instruction,
}
assert PARSERS.keys() == FORMATS.keys()


def read_side(value: Any, name: str, role: str) -> list[Message]:
    """A part of a chat: messages, or one text of this role."""
    if isinstance(value, list):
        return read_messages(value, name)
    if isinstance(value, dict):
        return [read_message(value, name)]
    return [make_message(role, read_text(value, name))]


def read_messages(value: Any, name: str) -> list[Message]:
    """Messages in OpenAI's form, in which a developer's are what system messages were."""
    return [
        read_message(message, f"{name}[{place}]")
        for place, message in enumerate(expect_list(value, name))
    ]


def read_message(message: Any, name: str) -> Message:
    """One message: role and content, and what else a template may look at, if there is anything."""
    if not isinstance(message, dict) or "role" not in message:
        raise BadRow(f"{name} is {show(message)}; expected an object with role and content", "turn")
    if message["role"] not in ROLES:
        raise BadRow(
            f"{name}.role is {show(message['role'])}; expected one of {', '.join(ROLES)}", "role"
        )
    others = {k: v for k, v in message.items() if k not in OWN_KEYS and v is not None}
    if others.get("function_call"):
        raise BadRow(
            f"{name} has function_call, which tool_calls took the place of; expected tool_calls",
            "function_call",
        )
    content = message.get("content")
    if content is None and others.get("tool_calls"):
        content = ""
    role = SYSTEM if message["role"] == "developer" else message["role"]
    return {**make_message(role, read_text(content, f"{name}.content")), **others}


def read_text(value: Any, name: str) -> str:
    """A text, or parts of one, which are lines; BadRow for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "\n".join(texts)
    raise BadRow(f"{name} is {show(value)}; expected text", "not text")


def read_system(row: Row) -> list[Message]:
    """The message of `system`, if there is one beside the turns."""
    text = read_text(row.get("system") or "", "system")
    return [make_message(SYSTEM, text)] if text else []


def make_message(role: str, content: str) -> Message:
    """A message."""
    return {"role": role, "content": content}


def expect_list(value: Any, name: str) -> Sequence[Any]:
    """The items of a list; BadRow for any other value."""
    if isinstance(value, list):
        return value
    raise BadRow(f"{name} is {show(value)}; expected a list", "not a list")


def show(value: Any) -> str:
    """A value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def find_reason(chat: Chat) -> str | None:
    """Why a chat teaches nothing, as it is counted; None if it does."""
    if not chat.messages:
        return "no messages"
    answers = [chat.messages[place] for place in chat.answers]
    if not answers:
        return "no answer"
    if any(not m["content"].strip() and not m.get("tool_calls") for m in answers):
        return "empty answer"
    return None
