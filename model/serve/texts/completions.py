"""/v1/completions: texts that continue prompts."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from model.serve.served import Served
from model.serve.texts.choices import AskedChoices, Choice, bound, read_form
from model.serve.texts.drafts import Prompt, count_texts, make_drafts
from model.serve.texts.sampling import MaxTokens, read_settings
from model.serve.texts.spelling import count_characters, show_bytes
from model.serve.wire.errors import refuse
from model.serve.wire.fields import Fields, Object

DEFAULT_MAX_TOKENS = 16
MAX_ALTERNATIVES = 20


@dataclass
class AskedCompletions(AskedChoices):
    """A request for completions; with `echo`, texts begin with their prompts."""

    echo: bool = False
    # Of each text whose answer has begun, how many characters its tokens had so far.
    offsets: dict[int, int] = field(default_factory=dict)

    prefix: ClassVar[str] = "cmpl-"
    kind: ClassVar[str] = "text_completion"
    part_kind: ClassVar[str] = "text_completion"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prompts = [draft.text for draft in self.drafts]  # They grow later.

    @property
    def measures_prompts(self) -> bool:
        """With `echo`, those of the prompts come first."""
        return self.echo and self.settings.logprobs is not None

    def show(self, choice: Choice) -> Object:
        """A choice, or the next part of it; the first one begins with the prompt."""
        begin = self.prompts[choice.index] if self.echo and choice.index not in self.offsets else ""
        offset = self.offsets.setdefault(choice.index, 0)
        shown: Object = {"index": choice.index, "text": begin + choice.text, "logprobs": None}
        if self.settings.logprobs is not None:
            shown["logprobs"], self.offsets[choice.index] = show_logprobs(choice, offset)
        return shown | choice.show_end()

    def show_part(self, choice: Choice) -> Object | None:
        """The same, unless it says nothing."""
        shown = self.show(choice)
        says = shown["text"] or shown["logprobs"] or choice.ended_by or self.form.returns_ids
        return shown if says else None


def show_logprobs(choice: Choice, offset: int) -> tuple[Object, int]:
    """The log-probabilities as OpenAI's completions have them, and the offset behind them.

    A place's alternatives are an object by their text, and hold the token itself, too. Of two that
    spell the same, the likelier is there.
    """
    spell = choice.asked.served.speller.spell
    tokens: list[str] = []
    own: list[float | None] = []
    best: list[dict[str, float] | None] = []
    offsets: list[int] = []
    ids: list[dict[str, int]] = []
    for scored in (*choice.prompt_logprobs, *choice.logprobs):
        spelled = spell(scored.token)
        tokens.append(show_bytes(spelled))
        offsets.append(offset)
        offset += count_characters(spelled)
        if scored.logprob is None:  # The first token of a prompt.
            own.append(None)
            best.append(None)
            ids.append({})
            continue
        own.append(bound(scored.logprob))
        places: dict[str, float] = {}
        place_ids: dict[str, int] = {}
        for token, logprob in (*scored.alternatives, (scored.token, scored.logprob)):
            shown = show_bytes(spell(token))
            if shown not in places:
                places[shown] = bound(logprob)
                place_ids[shown] = token
        best.append(places)
        ids.append(place_ids)
    shown_all: Object = {
        "tokens": tokens,
        "token_logprobs": own,
        "top_logprobs": best,
        "text_offset": offsets,
    }
    return shown_all | ({"top_token_ids": ids} if choice.asked.form.returns_ids else {}), offset


def read_completions(served: Served, fields: Fields) -> AskedCompletions:
    """A request, checked, with its drafts."""
    most = MaxTokens.read(fields, "max_tokens", 0, DEFAULT_MAX_TOKENS)
    num_alternatives = fields.whole("logprobs", 0, MAX_ALTERNATIVES)
    settings = read_settings(fields, served.generator, most, num_alternatives)
    num_samples = settings.num_return_sequences
    echo = fields.flag("echo")
    form = read_form(fields)
    if most.value == 0 and not echo:
        raise refuse("max_tokens is 0, which means something only with echo", "max_tokens")
    fields.expect("best_of", [num_samples], "the best are not chosen; expected n")
    fields.expect("suffix", [], "text is only written at the end")
    rows = list_prompts(fields)
    fields.refuse_others()
    count_texts(len(rows), num_samples, served.batcher.room, "prompt")
    prompts = [read_prompt(fields, row, served) for row in rows]
    drafts = make_drafts(served.generator, prompts, settings, most, "prompt")
    return AskedCompletions(served, drafts, form, echo=echo)


def list_prompts(fields: Fields) -> list[Any]:
    """The prompts, unchecked: a text, several, the ids of one, or of several."""
    value = fields.get("prompt")
    if isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int):
        return [value]
    if not isinstance(value, list) or not value:
        raise fields.wrong("prompt", value, "a string, token ids, or a list of either, not empty")
    return value


def read_prompt(fields: Fields, value: Any, served: Served) -> Prompt:
    """One prompt: a text, or token ids."""
    if not isinstance(value, list):
        return fields.check_text(value, "prompt")
    if not value:
        raise fields.wrong("prompt", value, 'token ids; an empty text is the string ""')
    last = served.generator.num_words - 1
    return [fields.check_whole(id, "prompt", 0, last) for id in value]
