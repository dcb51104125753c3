"""What to generate: how much, how many texts, and how tokens are chosen. Imports no torch."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Self

import typer

DEFAULT_MAX_LENGTH = 150
MAX_LOOKUP = 64
# Below this the likeliest token has all the probability there is, short of ties, and dividing the
# logits by it only risks an overflow.
MIN_TEMPERATURE = 1e-5
# Not valid in UTF-8; in arguments, Python uses them for bytes that are not UTF-8.
LONE_SURROGATES = re.compile("[\ud800-\udfff]")
# Settings of which there is at least one, or None.
# What one request may ask for: each text, and each beam, takes memory from the start.
MOST = {"num_return_sequences": 2**16, "num_beams": 2**10}
COUNTS = ("max_length", "max_new_tokens", "num_return_sequences", "batch_size", "num_beams")
EARLY_STOPPING: dict[str, bool | str] = {"false": False, "true": True, "never": "never"}
ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}


class SettingError(ValueError):
    """A setting that is wrong, by itself or beside another one.

    `words` has {} for the name of each, of which the first is the wrong one: elsewhere, such as in
    OpenAI's API, they have other names.
    """

    def __init__(self, words: str, *names: str) -> None:
        super().__init__(words.format(*names))
        self.words = words
        self.names = names


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises SettingError for an invalid value."""

    # False always takes the likeliest token, as does a temperature of 0 (or under 0.00001).
    do_sample: bool = True
    # Divides the logits; below 1, likely tokens become likelier still.
    temperature: Annotated[
        float,
        typer.Option(help="Randomness; 0 always takes the likeliest token."),
    ] = 0.8
    # Ties with the last one are kept too; None keeps all, as 0 does.
    top_k: Annotated[
        int | None,
        typer.Option(help="Choose among the k likeliest tokens; 0 = all."),
    ] = 50
    # Likeliest first, until their probabilities sum to this; None keeps all, as 1 does.
    top_p: Annotated[
        float | None,
        typer.Option(help="Choose among the likeliest tokens that sum to p; 1 = all."),
    ] = 0.9
    min_p: Annotated[
        float,
        typer.Option(
            help="Choose among tokens at least p times as likely as the likeliest; 0 = all."
        ),
    ] = 0.0
    # Those whose surprise is nearest to the expected one, until their probabilities sum to this; 1
    # keeps all (Locally Typical Sampling, Meister et al. 2022).
    typical_p: Annotated[
        float,
        typer.Option(help="Choose among the most typical tokens that sum to p; 1 = all."),
    ] = 1.0
    # For tokens in the prompt and the text so far (CTRL, Keskar et al. 2019): positive logits are
    # divided by it, negative ones multiplied.
    repetition_penalty: Annotated[
        float,
        typer.Option(help="Above 1, tokens already in the text become less likely."),
    ] = 1.0
    # Subtracted from the logits of tokens that were generated, not of those in the prompt: once,
    # and once for each time. As in OpenAI's API and vLLM.
    presence_penalty: Annotated[
        float,
        typer.Option(help="Above 0, tokens already generated become less likely; -2 to 2."),
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        typer.Option(help="The same for each time that they were generated; -2 to 2."),
    ] = 0.0
    # No n tokens in a row come twice, those of the prompt included; 0 is off.
    no_repeat_ngram_size: Annotated[
        int,
        typer.Option(help="Write no row of n tokens twice; 0 = off."),
    ] = 0
    # The tokens of each word, at the beginning of a text and after a space, never come in a row. As
    # other tokens may spell the same letters, that makes a word unlikely, not impossible.
    bad_words: Annotated[
        str | Sequence[str] | None,
        typer.Option(
            help="Do not write the tokens of this word. May be given several times, with escapes "
            "as in --stop."
        ),
    ] = None
    # Until then no token ends the text; a stop string still does. The first counts the prompt, too.
    min_length: Annotated[
        int, typer.Option(help="Minimum tokens in a text, its prompt included.")
    ] = 0
    min_new_tokens: Annotated[int, typer.Option(help="Minimum tokens after the prompt.")] = 0
    # Added to the logits of these token ids, from -100 to 100, before all else. As in OpenAI's API.
    logit_bias: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        checks = {
            "temperature": (self.temperature >= 0, "of at least 0; 0 takes the likeliest token"),
            "top_k": (self.top_k is None or self.top_k >= 0, "of at least 0; 0 is off"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1; 1 is off"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1; 0 is off"),
            "typical_p": (0 < self.typical_p <= 1, "above 0 and at most 1; 1 is off"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0; 1 is off"),
            "presence_penalty": (-2 <= self.presence_penalty <= 2, "from -2 to 2; 0 is off"),
            "frequency_penalty": (-2 <= self.frequency_penalty <= 2, "from -2 to 2; 0 is off"),
            "no_repeat_ngram_size": (self.no_repeat_ngram_size >= 0, "of at least 0; 0 is off"),
            "min_length": (self.min_length >= 0, "of at least 0; 0 is off"),
            "min_new_tokens": (self.min_new_tokens >= 0, "of at least 0; 0 is off"),
        }
        for name, (is_valid, expected) in checks.items():
            value = getattr(self, name)
            if not is_valid or value == math.inf:
                raise SettingError(f"{{}} is {value}; expected a number {expected}", name)
        if any(not word or LONE_SURROGATES.search(word) for word in self.words):
            raise SettingError(
                "{} holds a word that is empty or not UTF-8; leave it out", "bad_words"
            )
        for token, bias in (self.logit_bias or {}).items():
            if token < 0 or not -100 <= bias <= 100:
                raise ValueError(
                    f"logit_bias of token {token} is {bias}; expected a number from -100 to 100, "
                    "for the id of a token"
                )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, instead of drawing one."""
        return not self.do_sample or self.temperature < MIN_TEMPERATURE

    @property
    def words(self) -> tuple[str, ...]:
        """The bad words as a tuple, which may be empty."""
        return list_words(self.bad_words)

    @cached_property
    def drawing(self) -> tuple[float | None, ...] | None:
        """Equal for texts whose tokens may be drawn together; None where none are drawn."""
        if self.is_greedy:
            return None
        return (self.temperature, self.top_k, self.top_p, self.min_p, self.typical_p)

    @cached_property
    def penalizes(self) -> bool:
        """Whether tokens of the text become less or more likely."""
        others = self.presence_penalty or self.frequency_penalty
        return bool(self.repetition_penalty != 1 or others)

    @cached_property
    def changes_logits(self) -> bool:
        """Whether the text so far, or a bias, changes logits at all before any is drawn."""
        forbids = self.no_repeat_ngram_size or self.bad_words
        delays_end = self.min_length or self.min_new_tokens
        return bool(self.penalizes or self.logit_bias or forbids or delays_end)

    @property
    def keeps_all(self) -> bool:
        """Whether any token may be drawn, however unlikely."""
        cuts_mass = (self.top_p or 1) < 1 or self.min_p > 0 or self.typical_p < 1
        return not self.top_k and not cuts_mass


@dataclass(frozen=True)
class Settings(Sampling):
    """What to generate: how much, how many texts, and how tokens are chosen."""

    # With neither of the two, DEFAULT_MAX_LENGTH.
    max_length: Annotated[
        int | None,
        typer.Option(
            help=f"Maximum tokens in a text, its prompt included. Default: {DEFAULT_MAX_LENGTH}."
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens after the prompt, instead of --max-length.")
    ] = None
    num_return_sequences: Annotated[
        int,
        typer.Option("--num-samples", help="Texts per prompt."),
    ] = 1
    stop: Annotated[
        str | Sequence[str] | None,
        typer.Option(
            help="Stop before this text. May be given several times. \\n is a line's end, \\t a "
            "tab, \\\\ a backslash."
        ),
    ] = None
    # None gives different texts each time.
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same texts.")] = None
    # Above 1, texts are searched and not drawn: so many are kept at each token, and the best that
    # have ended are taken. Seed, temperature, top_k and the like play no part.
    num_beams: Annotated[
        int, typer.Option(help="Search the likeliest text with so many beams; 1 = draw.")
    ] = 1
    # A text's score is the sum of its log-probabilities over its length to the power of this.
    length_penalty: Annotated[
        float, typer.Option(help="Of beams: above 0, longer texts are preferred.")
    ] = 1.0
    # When the search ends: true, with as many texts as beams; false, when it is unlikely that a
    # better one comes; never, when none can. As transformers' True, False and "never".
    early_stopping: Annotated[
        str, typer.Option(help="When a search by beams ends: false, true or never.")
    ] = "false"
    # How many of the likeliest tokens to keep for each generated one, with their log-probabilities
    # and its own; None keeps none. They are the model's: before temperature, penalties and cuts.
    logprobs: Annotated[
        int | None,
        typer.Option(help="With --json: each token's log-probability, and so many alternatives."),
    ] = None
    # How many tokens are guessed and looked at together where a text repeats itself; it stays the
    # same, but for rounding.
    prompt_lookup_num_tokens: Annotated[
        int,
        typer.Option(
            "--prompt-lookup",
            help="Where a text repeats itself, guess so many tokens; the text stays the same.",
        ),
    ] = 0
    # Texts generated together. Fewer take less memory; the texts stay the same, but for rounding.
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
            if value is not None and value > MOST.get(name, value):
                raise ValueError(f"{name} is {value}; expected at most {MOST[name]}")
        if not 0 <= self.prompt_lookup_num_tokens <= MAX_LOOKUP:
            raise ValueError(
                f"prompt_lookup_num_tokens is {self.prompt_lookup_num_tokens}; expected from 0 to "
                f"{MAX_LOOKUP}; 0 is off"
            )
        if 1 < self.num_beams < self.num_return_sequences:
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences}, but num_beams is "
                f"{self.num_beams}; expected no more texts than beams"
            )
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"length_penalty is {self.length_penalty}; expected a number")
        if str(self.early_stopping).lower() not in EARLY_STOPPING:
            raise ValueError(
                f"early_stopping is {self.early_stopping!r}; expected false, true or never"
            )
        if self.logprobs is not None and self.logprobs < 0:
            raise ValueError(f"logprobs is {self.logprobs}; expected 0 or more alternatives")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise SettingError(
                f"{{}} is {self.min_new_tokens}, but {{}} is {self.max_new_tokens}; expected no "
                "more than that",
                "min_new_tokens",
                "max_new_tokens",
            )
        if self.max_length is not None and self.max_new_tokens is not None:
            raise ValueError(
                f"max_length is {self.max_length} and max_new_tokens is {self.max_new_tokens}; "
                "expected only one: the first counts the prompt's tokens too"
            )
        if any(LONE_SURROGATES.search(stop) for stop in self.stops):
            raise SettingError(
                "a stop string is not UTF-8 and would never be found; leave it out", "stop"
            )
        if "" in self.stops:
            raise SettingError(
                "a stop string is empty and would end every text; leave it out", "stop"
            )

    @property
    def stops_early(self) -> bool | str:
        """False, True or "never": when a search by beams ends."""
        return EARLY_STOPPING[str(self.early_stopping).lower()]

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple, which may be empty."""
        return list_words(self.stop)

    def read_escapes(self) -> Self:
        """The settings of one who typed them: escapes in stop strings and bad words are read."""
        return replace(
            self,
            stop=tuple(map(read_typed, self.stops)),
            bad_words=tuple(map(read_typed, self.words)),
        )


def list_words(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """What may be one, several or none, as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given or ())


def read_typed(typed: str) -> str:
    r"""A stop string or a bad word, as meant by one who cannot type a line's end or a tab.

    >>> read_typed(r"\n\nUser:"), read_typed(r"\\nabla \x")
    ('\n\nUser:', '\\nabla \\x')
    """
    return re.sub(r"\\[nt\\]", lambda found: ESCAPES[found[0]], typed)
