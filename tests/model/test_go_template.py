"""Chat templates in Ollama's language: what they render is compared with what Jinja renders."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from model.chat.go_template import translate
from model.chat.render import TemplateError, render
from model.chat.template import RenderError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Qwen's: a system prompt where there is none.
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe good.<|im_end|>\\n' }}"
    "{% endif %}" + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
)
# As Mistral's: no system prompt, and roles alternate.
INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + '</s>' }}{% endif %}{% endfor %}"
)
WORDS = (
    "{% for m in messages %}{{ {'system': '', 'user': 'User: ', 'assistant': 'Assistant: '}[m.role]"
    " + m.content + '\\n\\n' }}{% endfor %}Assistant:{{ ' ' }}"
)
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>"]


def render_jinja(source: str, messages: Sequence[dict[str, str]]) -> str:
    variables = {"bos_token": "<s>", "add_generation_prompt": True}
    try:
        return render(source, [*messages], variables, ["", ""], has_clock=False)
    except TemplateError as error:
        raise RenderError(str(error)) from None


def render_go(text: str, messages: Sequence[dict[str, str]]) -> str:
    """What Go makes of a template that has ranges over messages, conditions and fields."""
    words = iter(re.split(r"{{ (.*?) }}", text))
    tree, _ = parse([*words])
    system = "".join(m["content"] for m in messages if m["role"] == "system")
    return run(tree, {"System": system, "Messages": messages})


def parse(words: list[str]) -> tuple[list[Any], str]:
    """Texts and actions, in turn, to a tree; and the action at which it ends."""
    nodes: list[Any] = []
    while words:
        nodes.append(words.pop(0))
        if not words:
            break
        action = words.pop(0)
        if action == "end" or action.startswith("else"):
            return nodes, action
        if action.startswith(("if ", "range ")):
            branches = []
            while action != "end":
                inner, following = parse(words)
                branches.append((action.removeprefix("else").strip(), inner))
                action = following
            nodes.append(branches)
        else:
            nodes.append([(action, [])])
    return nodes, "end"


def run(nodes: list[Any], scope: Any) -> str:
    return "".join(n if isinstance(n, str) else run_branches(n, scope) for n in nodes)


def run_branches(branches: list[tuple[str, list[Any]]], scope: Any) -> str:
    for action, inner in branches:
        if action == "range .Messages":
            return "".join(run(inner, message) for message in scope["Messages"])
        if action == ".Content":
            return str(scope["content"])
        role = re.fullmatch('if eq .Role "(.*)"', action)
        if action == "" or (action == "if .System" and scope["System"]):
            return run(inner, scope)
        if role and scope["role"] == role[1]:
            return run(inner, scope)
    return ""


def chat(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"it's {role}, no. {i}"} for i, role in enumerate(roles)]


U, A, S = "user", "assistant", "system"


@pytest.mark.parametrize(
    ("source", "stop"),
    [
        (CHATML, "<|im_end|>"),
        (DEFAULT_SYSTEM, "<|im_end|>"),
        (LLAMA3, "<|eot_id|>"),
        (INST, "</s>"),
        (WORDS, "User:"),
    ],
)
def test_a_template_renders_the_same_in_go(source: str, stop: str) -> None:
    found = translate(partial(render_jinja, source), SPECIALS)
    assert found is not None
    assert found.stops == (stop,)
    # No special token is cut in two.
    assert re.findall(r"<\|\w+(?!\|>|\w)", found.text) == []
    chats = [chat(U), chat(U, A, U), chat(U, A, U, A, U)]
    if source != INST:
        chats += [chat(S, U), chat(S, U, A, U)]
    for messages in chats:
        assert render_go(found.text, messages) == render_jinja(source, messages)


def test_what_ollama_puts_before_a_prompt_itself_is_left_out() -> None:
    found = translate(partial(render_jinja, LLAMA3), SPECIALS, begin="<s>")
    assert found is not None
    assert "<s>" + render_go(found.text, chat(S, U)) == render_jinja(LLAMA3, chat(S, U))


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content }}",
        "{{ messages | length }}" + CHATML,
        "{{ raise_exception('never') }}",
        "{{ '{{' }}" + CHATML,
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content | replace('1', 'one') }}{% endfor %}",
        # Only the last question, as some do.
        "{% for m in messages[-1:] %}{{ '<|im_start|>' + m.content }}{% endfor %}",
    ],
)
def test_a_template_that_does_more_is_not_translated(source: str) -> None:
    assert translate(partial(render_jinja, source), SPECIALS) is None
