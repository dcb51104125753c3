"""/v1/chat/completions: the next message of a chat."""

from dataclasses import dataclass, field
from typing import ClassVar

from model.decode.logprobs import TokenLogprob
from model.serve.served import Served
from model.serve.texts.choices import AskedChoices, Choice, bound, read_form
from model.serve.texts.drafts import count_texts, encode_chat, make_drafts
from model.serve.texts.messages import read_messages, refuse_tools
from model.serve.texts.sampling import MaxTokens, read_settings
from model.serve.texts.spelling import show_bytes
from model.serve.wire.errors import refuse
from model.serve.wire.fields import Fields, Object

MAX_ALTERNATIVES = 20


@dataclass
class AskedChat(AskedChoices):
    """A request for the next message."""

    begun: set[int] = field(default_factory=set)  # The choices of which a part was shown.

    prefix: ClassVar[str] = "chatcmpl-"
    kind: ClassVar[str] = "chat.completion"
    part_kind: ClassVar[str] = "chat.completion.chunk"

    def show(self, choice: Choice) -> Object:
        """A whole choice."""
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return self.wrap_choice(choice, message=message)

    def show_part(self, choice: Choice) -> Object | None:
        """What is new of a choice: who speaks, text, and the end."""
        delta: Object = {"content": choice.text} if choice.text else {}
        if choice.index not in self.begun:
            self.begun.add(choice.index)
            delta = {"role": "assistant", "content": choice.text}
        shown = self.wrap_choice(choice, delta=delta)
        says = delta or shown["logprobs"] or choice.ended_by or self.form.returns_ids
        return shown if says else None

    def wrap_choice(self, choice: Choice, **said: Object) -> Object:
        """What was said, and what is known of it."""
        content = [show_place(choice, scored) for scored in choice.logprobs]
        logprobs = {"content": content, "refusal": None}
        return {
            "index": choice.index,
            **said,
            "logprobs": None if self.settings.logprobs is None else logprobs,
            **choice.show_end(),
        }


def show_place(choice: Choice, scored: TokenLogprob) -> Object:
    """One token with its alternatives."""
    places = [show_token(choice, token, logprob) for token, logprob in scored.alternatives]
    assert scored.logprob is not None
    return {**show_token(choice, scored.token, scored.logprob), "top_logprobs": places}


def show_token(choice: Choice, token: int, logprob: float) -> Object:
    """A token as chats have it; its bytes are there for those that are no whole characters."""
    spelled = choice.asked.served.speller.spell(token)
    shown: Object = {
        "token": show_bytes(spelled),
        "logprob": bound(logprob),
        "bytes": [*spelled],
    }
    return shown | ({"token_id": token} if choice.asked.form.returns_ids else {})


def read_chat(served: Served, fields: Fields) -> AskedChat:
    """A request, checked, with its drafts."""
    served.expect_chats()
    wants_logprobs = fields.flag("logprobs")
    num_alternatives = fields.whole("top_logprobs", 0, MAX_ALTERNATIVES)
    if num_alternatives is not None and not wants_logprobs:
        raise refuse("top_logprobs is given without logprobs: true", "top_logprobs")
    older = MaxTokens.read(fields, "max_tokens")
    most = MaxTokens.read(fields, "max_completion_tokens")
    most = older if most.is_default else most
    settings = read_settings(
        fields, served.generator, most, num_alternatives or 0 if wants_logprobs else None
    )
    form = read_form(fields)
    messages = read_messages(fields, "messages", ["text"])
    refuse_tools(fields)
    fields.expect("response_format", [{"type": "text"}], "only text is written")
    fields.expect("modalities", [["text"]], "only text is written")
    fields.expect("store", [False], "nothing is stored")
    fields.refuse_others()
    count_texts(1, settings.num_return_sequences, served.batcher.room, "messages")
    prompt = encode_chat(served, messages, "messages")
    drafts = make_drafts(served.generator, [prompt], settings, most, "messages")
    return AskedChat(served, drafts, form)
