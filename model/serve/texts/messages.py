"""The messages of a chat, as requests have them and as templates take them."""

from collections.abc import Sequence
from typing import Any

from model.serve.wire.errors import refuse
from model.serve.wire.fields import Fields

# What templates know each role as: a developer's messages are what system messages were.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_MESSAGES = 2048

Message = dict[str, str]


def read_messages(fields: Fields, name: str, kinds: Sequence[str]) -> list[Message]:
    """The messages in a field: objects with role and content, which is text or parts of text.

    `kinds` are the types that a part of text may have.
    """
    values = fields.get(name)
    if not isinstance(values, list) or not 0 < len(values) <= MAX_MESSAGES:
        raise fields.wrong(name, values, f"a list of 1 to {MAX_MESSAGES:,} messages")
    return [
        read_message(value, f"{fields.path}{name}[{i}].", kinds) for i, value in enumerate(values)
    ]


def read_message(value: Any, path: str, kinds: Sequence[str]) -> Message:
    """One message."""
    if not isinstance(value, dict):
        raise refuse(f"{path[:-1]} is not an object with role and content", path[:-1])
    fields = Fields(value, path)
    fields.ignore("id", "status")  # Of a message that comes back.
    fields.expect("type", ["message"], "only messages are taken")
    role = fields.text("role")
    if role not in ROLES:
        raise fields.wrong("role", role, f"one of {', '.join(ROLES)}")
    message = {"role": ROLES[role], "content": read_content(fields, kinds)}
    author = fields.text("name")
    for nothing in ("refusal", "tool_calls", "function_call", "audio"):
        fields.expect(nothing, [[]], "only text is taken")
    fields.refuse_others()
    return message | ({"name": author} if author else {})


def read_content(fields: Fields, kinds: Sequence[str]) -> str:
    """A message's text; parts of it are lines, as in vLLM."""
    value = fields.get("content")
    if not isinstance(value, list):
        text = fields.text("content")
        if text is None:
            raise fields.wrong("content", value, "text, or parts of text")
        return text
    texts = []
    for i, part in enumerate(value):
        path = f"{fields.path}content[{i}]."
        if not isinstance(part, dict) or part.get("type") not in kinds:
            raise refuse(f"{path[:-1]} is not an object of type {' or '.join(kinds)}", path[:-1])
        inner = Fields(part, path)
        inner.ignore("type", "annotations", "logprobs")
        text = inner.text("text")
        if text is None:
            raise inner.wrong("text", None, "text")
        inner.refuse_others()
        texts.append(text)
    return "\n".join(texts)


def refuse_tools(fields: Fields) -> None:
    """Refuse what would call functions."""
    for name in ("tools", "functions"):
        fields.expect(name, [[]], "functions are not called")
    for name in ("tool_choice", "function_call"):
        fields.expect(name, ["none", "auto"], "functions are not called")
    fields.ignore("parallel_tool_calls")
