"""A chat template in the language of Ollama, which is Go's: found by what the template renders.

Most templates put something before and behind each message, by its role. What that is shows in a
few rendered chats; others, rendered and compared, show whether it is all that the template does.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from model.chat.template import RenderError

Message = dict[str, str]
Render = Callable[[Sequence[Message]], str]
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
# Chats by which a translation is judged: their roles.
TRIED = (
    (USER,),
    (USER, ASSISTANT, USER),
    (USER, ASSISTANT, USER, ASSISTANT, USER),
    (SYSTEM, USER),
    (SYSTEM, USER, ASSISTANT, USER, ASSISTANT, USER),
)


def branch(action: str) -> str:
    """An action of Go.

    >>> branch("range .Messages")
    '{{ range .Messages }}'
    """
    return f"{{{{ {action} }}}}"


def branch_role(word: str, role: str) -> str:
    """What comes next is for messages of a role."""
    return branch(f'{word} eq .Role "{role}"')


CONTENT, END = branch(".Content"), branch("end")


@dataclass(frozen=True)
class Affixes:
    """What a template puts around messages; `begin` holds all before a question but `user`."""

    begin: str
    # The same where there is a system prompt, and what is behind that; None if it takes none.
    begin_system: str | None
    end_system: str
    user: str
    # From a question to its answer, and behind an answer.
    ask: str
    end_answer: str

    def render(self, messages: Sequence[Message]) -> str:
        """What Ollama makes of messages by `spell`."""
        has_system = messages[0]["role"] == SYSTEM
        text = (self.begin_system or "") if has_system else self.begin
        for message in messages:
            role, content = message["role"], message["content"]
            if role == SYSTEM:
                text += content + self.end_system
            elif role == USER:
                text += self.user + content + self.ask
            else:
                text += content + self.end_answer
        return text

    def spell(self) -> str:
        """The same as a template of Go."""
        begin, system = self.begin, ""
        if self.begin_system is not None:
            lead = self.begin_system
            if lead.startswith(begin):
                lead = lead.removeprefix(begin)
            else:
                begin, lead = f"{branch('if .System')}{lead}{branch('else')}{begin}{END}", ""
            system = f"{branch_role('if', SYSTEM)}{lead}{CONTENT}{self.end_system}{branch('else')}"
        user = f"{branch_role('if', USER)}{self.user}{CONTENT}{self.ask}"
        assistant = f"{branch_role('else if', ASSISTANT)}{CONTENT}{self.end_answer}"
        last = END if system else ""
        return f"{begin}{branch('range .Messages')}{system}{user}{assistant}{END}{last}{END}"


@dataclass(frozen=True)
class GoTemplate:
    """A template of Go, and the texts at which an answer ends."""

    text: str
    stops: tuple[str, ...]


def translate(render: Render, specials: Collection[str], begin: str = "") -> GoTemplate | None:
    """The template that renders so, in Go; None if it does more than put texts around messages.

    `specials` are the tokenizer's special tokens; `begin` is what Ollama puts before a prompt
    itself.
    """
    try:
        affixes = find_affixes(render, specials)
        if affixes is None or not is_same(affixes, render):
            return None
    except RenderError:
        return None
    spelled = Affixes(
        affixes.begin.removeprefix(begin),
        affixes.begin_system and affixes.begin_system.removeprefix(begin),
        affixes.end_system,
        affixes.user,
        affixes.ask,
        affixes.end_answer,
    )
    parts = [spelled.begin, spelled.begin_system or "", spelled.end_system, spelled.user]
    if any("{{" in part for part in [*parts, spelled.ask, spelled.end_answer]):
        return None
    between = spelled.end_answer + spelled.user
    first = min((token for token in specials if token in between), key=between.find, default="")
    stop = first or between.strip()
    return GoTemplate(spelled.spell(), (stop,) if stop else ())


def find_affixes(render: Render, specials: Collection[str]) -> Affixes | None:
    """What stands around the messages of a few chats, as far as it can be told from them."""
    short, long = cut(render, (USER,)), cut(render, (USER, ASSISTANT, USER))
    if short is None or long is None:
        return None
    (before, _), (_, ask, between, _) = short, long
    try:
        with_system = cut(render, (SYSTEM, USER))
    except RenderError:  # It takes none.
        with_system = None
    user = find_common_end(before, between, specials)
    if with_system is None:
        start, end = None, ""
    else:
        start, end = with_system[:2]
        user = find_common_end(user, end, specials)
        end = end.removesuffix(user)
    begin, end_answer = before.removesuffix(user), between.removesuffix(user)
    return Affixes(begin, start, end, user, ask, end_answer)


def find_common_end(one: str, other: str, specials: Collection[str]) -> str:
    """The longest text with which both end, and that begins within none of the special tokens.

    >>> find_common_end("a user", "the user", [])
    ' user'
    >>> find_common_end("<s>[INST] ", "</s>[INST] ", ["<s>", "</s>"])
    '[INST] '
    """
    size = 0
    while size < min(len(one), len(other)) and one[-1 - size] == other[-1 - size]:
        size += 1
    words = "|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)"
    for text in (one, other, one):
        for found in re.finditer(words, text):
            if found.start() < len(text) - size < found.end():
                size = len(text) - found.end()
    return one[len(one) - size :]


def cut(render: Render, roles: Sequence[str]) -> list[str] | None:
    """What is before, between and behind the messages of a chat; None if one does not show."""
    messages = make_chat(roles, "one")
    rest, parts = render(messages), []
    for message in messages:
        before, found, rest = rest.partition(message["content"])
        if not found:
            return None
        parts.append(before)
    return [*parts, rest]


def is_same(affixes: Affixes, render: Render) -> bool:
    """Whether other chats are rendered alike."""
    chats = [
        make_chat(roles, word)
        for roles in TRIED
        for word in ("two words", "1")
        if affixes.begin_system is not None or SYSTEM not in roles
    ]
    return all(affixes.render(chat) == render(chat) for chat in chats)


def make_chat(roles: Sequence[str], word: str) -> list[Message]:
    """A chat whose messages differ, and are in no template."""
    return [
        {"role": role, "content": f"{word} qx{number}{role}xq"} for number, role in enumerate(roles)
    ]
