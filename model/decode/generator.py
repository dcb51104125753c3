"""Turns prompts into texts: what is asked for becomes drafts, and batches write them."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from model.checkpoints.kept_tokenizer import END_OF_TEXT
from model.checkpoints.tokenizer import count_least, find_longest_token, naming_panics
from model.config import Kept
from model.decode.batch import Batch
from model.decode.beam import search_beams
from model.decode.draft import Completion, Draft, FinishReason, make_random
from model.decode.logprobs import TokenLogprob
from model.decode.predictor import Predictor
from model.decode.score import PIECE, Scoring
from model.decode.settings import DEFAULT_MAX_LENGTH, LONE_SURROGATES, Settings
from model.decode.text_stream import REPLACEMENT, TextStream
from model.transformer import Transformer

# A text, or token ids.
Prompt = str | Sequence[int]


class ContextExceeded(ValueError):
    """A prompt that leaves too little room for new text in the model's context."""

    def __init__(self, num_tokens: int, context: int, is_least: bool = False) -> None:
        least = "at least " if is_least else ""
        super().__init__(
            f"the prompt has {least}{num_tokens:,} tokens, the model's context is {context:,}; "
            "shorten the prompt to leave room for new text"
        )
        self.num_tokens = num_tokens


class Generator:
    """A model with its tokenizer, ready to generate.

    `tokenizer.encode(prompt).ids` are the model's input. Each of the tokens `ends` ends a text, and
    `begin` stands for an empty prompt; by default, both are <|endoftext|>.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        ends: Sequence[int] = (),
        begin: int | None = None,
        predictor: type[Predictor] = Predictor,
    ) -> None:
        self.model = model
        # The checkpoint that it was loaded from, and what its weights were rounded to.
        self.folder: Path | None = None
        # Where its tokenizer and its chat template are: an adapter may have those of its base.
        self.words: Path | None = None
        self.dtype: Kept | None = None
        self.tokenizer = tokenizer
        end_of_text = ends[0] if ends else tokenizer.token_to_id(END_OF_TEXT)
        assert end_of_text is not None, f"the tokenizer has no {END_OF_TEXT}"
        self.ends = frozenset([end_of_text, *ends])
        self.end_of_text = end_of_text
        self.begin = end_of_text if begin is None else begin
        # Ids may have gaps, so this is not their number. Rows of the head from here on are padding.
        self.context = model.config.context
        self.num_words = 1 + max(tokenizer.get_vocab().values())
        self.predictor = predictor(model, self.num_words)

    def generate(
        self,
        prompt: str | Sequence[str],
        max_length: int | None = Settings.max_length,
        temperature: float = Settings.temperature,
        top_k: int | None = Settings.top_k,
        top_p: float | None = Settings.top_p,
        min_p: float = Settings.min_p,
        repetition_penalty: float = Settings.repetition_penalty,
        num_return_sequences: int = Settings.num_return_sequences,
        max_new_tokens: int | None = Settings.max_new_tokens,
        stop: str | Sequence[str] | None = Settings.stop,
        seed: int | Sequence[int] | None = Settings.seed,
        do_sample: bool = Settings.do_sample,
        **others: Any,
    ) -> list[str]:
        """The texts that continue one prompt or several, prompts included; see `Settings`.

        All texts of the first prompt come first. `seed` may be one for each prompt, and `others`
        are further settings. Raises ValueError for an invalid setting, and for a prompt that leaves
        no room in the context or within max_length.
        """
        settings = Settings(
            max_length=max_length,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            num_return_sequences=num_return_sequences,
            max_new_tokens=max_new_tokens,
            stop=stop,
            do_sample=do_sample,
            **others,
        )
        prompts = [prompt] if isinstance(prompt, str) else prompt
        seeds = [seed] * len(prompts) if seed is None or isinstance(seed, int) else seed
        each = [replace(settings, seed=seed) for seed in seeds]
        return [completion.text for completion in self.complete(prompts, each)]

    def complete(
        self,
        prompts: Sequence[Prompt],
        settings: Settings | Sequence[Settings],
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Completion]:
        """Like `generate`, but with each text's token ids and the reason it ended.

        Prompts are texts or token ids; each may have settings of its own, and so a seed.
        `on_text(i, piece)`, if given, receives each piece of text i as it is generated.
        """
        drafts = self.start(prompts, settings)
        for draft, piece in self.write(drafts):
            if on_text is not None and piece:
                on_text(draft.index, piece)
        return [draft.complete() for draft in drafts]

    def stream(self, prompt: str, settings: Settings) -> Iterator[str]:
        """The pieces of one text as they are generated; joined, they are the text minus its prompt.

            for piece in generator.stream("Once upon a time", Settings(max_length=300)):
                print(piece, end="", flush=True)

        Raises ValueError right away, before the first piece, for what `generate` refuses.
        """
        drafts = self.start([prompt], replace(settings, num_return_sequences=1))
        return (piece for _, piece in self.write(drafts) if piece)

    def start(
        self,
        prompts: Sequence[Prompt],
        settings: Settings | Sequence[Settings],
        min_room: int = 1,
    ) -> list[Draft]:
        """A draft for each requested text, so far with only its prompt.

        Raises ContextExceeded for a prompt that leaves no room for `min_room` new tokens, and
        ValueError for what else `generate` refuses.
        """
        drawn_seed: int | None = None
        num_uses = Counter[tuple[int, str]]()
        drafts: list[Draft] = []
        for prompt, wanted in zip(prompts, spread(settings, len(prompts)), strict=True):
            text, tokens = self._read(prompt, self.context)
            limit, limit_reason = self._find_limit(len(tokens), wanted, min_room)
            bad_words = self._find_bad_words(wanted)
            seed = wanted.seed
            if seed is None:
                if drawn_seed is None:
                    drawn_seed = int(torch.randint(2**63 - 1, ()))
                seed = drawn_seed
            for rank in range(wanted.num_return_sequences):
                draft = Draft(
                    index=len(drafts),
                    settings=wanted,
                    text=text,
                    tokens=tokens.copy(),
                    num_prompt_tokens=len(tokens),
                    ends=self.ends,
                    limit=limit,
                    limit_reason=limit_reason,
                    stream=TextStream(self.tokenizer, wanted.stops, tokens if text else ()),
                    random=make_random(seed, text, num_uses[seed, text]),
                    bad_words=bad_words,
                    rank=rank,
                )
                num_uses[seed, text] += 1
                drafts.append(draft)
        return drafts

    @cached_property
    def longest_token(self) -> int | None:
        """The most bytes of a prompt that one token can stand for; None if that has no bound."""
        return find_longest_token(self.tokenizer)

    def _read(self, prompt: Prompt, most: int | None = None) -> tuple[str, list[int]]:
        """The prompt's text and tokens; without any, it is the beginning of a document.

        ContextExceeded for a text that has more than `most` tokens by its size alone.
        """
        if isinstance(prompt, str):
            text = LONE_SURROGATES.sub(REPLACEMENT, prompt)
            if most is not None and (least := count_least(text, self.longest_token)) > most:
                raise ContextExceeded(least, most, is_least=True)
            with naming_panics():
                tokens: list[int] = self.tokenizer.encode(text).ids
            return text, tokens or [self.begin]
        if any(not 0 <= token < self.num_words for token in prompt):
            raise ValueError(
                f"a prompt has token {next(t for t in prompt if not 0 <= t < self.num_words)}; the "
                f"tokenizer's ids are from 0 to {self.num_words - 1}"
            )
        text = self.tokenizer.decode(list(prompt), skip_special_tokens=False)
        return text, list(prompt) or [self.begin]

    def _find_bad_words(self, settings: Settings) -> set[tuple[int, ...]]:
        """The rows of tokens that spell the bad words, as a text begins and after a space.

        A token that ends texts is not among them, as in transformers, nor what has no token.
        """
        spelled = [*settings.words]  # Also of blanks alone, such as the end of a line.
        spelled += [" " + word.lstrip() for word in settings.words if word.strip()]
        with naming_panics():
            rows = {tuple(self.tokenizer.encode(text).ids) for text in spelled}
        return rows - {(token,) for token in self.ends} - {()}

    def _find_limit(
        self, num_prompt_tokens: int, settings: Settings, min_room: int
    ) -> tuple[int, FinishReason]:
        """The most tokens that a text may have, and the reason for ending there."""
        context = self.context
        if num_prompt_tokens + min_room > context:
            raise ContextExceeded(num_prompt_tokens, context)
        if settings.logit_bias and max(settings.logit_bias) >= self.num_words:
            raise ValueError(
                f"logit_bias has token {max(settings.logit_bias)}; the tokenizer's ids end at "
                f"{self.num_words - 1}"
            )
        limit = DEFAULT_MAX_LENGTH if settings.max_length is None else settings.max_length
        if settings.max_new_tokens is not None:
            limit = num_prompt_tokens + settings.max_new_tokens
        if limit <= num_prompt_tokens:
            raise ValueError(
                f"the prompt has {num_prompt_tokens:,} tokens, but max_length is {limit:,} and "
                "includes them; raise it, or set max_new_tokens instead"
            )
        return (limit, "length") if limit <= context else (context, "context")

    def write(self, drafts: Sequence[Draft]) -> Iterator[tuple[Draft, str]]:
        """Write all drafts until each has ended; yields each piece of text as it comes.

        At most `batch_size` of them at a time. Drafts that have ended are `complete`.
        """
        yield from self._search([draft for draft in drafts if draft.settings.num_beams > 1])
        waiting = deque(draft for draft in drafts if draft.settings.num_beams == 1)
        batch = Batch(self.predictor)
        size = min((draft.settings.batch_size for draft in waiting), default=1)
        while waiting or len(batch):
            num_free = min(size - len(batch), len(waiting))
            batch.join([waiting.popleft() for _ in range(num_free)])
            yield from batch.step()

    def _search(self, drafts: list[Draft]) -> Iterator[tuple[Draft, str]]:
        """Write drafts by beam search; all texts of a prompt are found at once."""
        found: dict[tuple[object, ...], list[Draft]] = {}
        for draft in drafts:
            key = (id(draft.settings), *draft.tokens)
            if key not in found:
                found[key] = search_beams(self.predictor, draft)
            yield draft, draft.become(found[key][draft.rank])

    def score(self, text: Prompt, num_alternatives: int = 0) -> list[TokenLogprob]:
        """The log-probability of each token of a text, or of a row of token ids.

        With as many of the likeliest tokens in its place as `num_alternatives`. Nothing predicts
        the first token, which has None: for a text as the beginning of a document, give
        `[generator.begin, *ids]`. Raises ValueError for a text longer than the model's context.
        """
        tokens = self._read(text)[1]
        scoring = Scoring(self.predictor, tokens, num_alternatives)
        while not scoring.is_done:
            scoring.step(PIECE)
        return scoring.scored


def spread(settings: Settings | Sequence[Settings], num_prompts: int) -> Sequence[Settings]:
    """Settings for each prompt, from the same for all or one for each."""
    if isinstance(settings, Settings):
        return [settings] * num_prompts
    if len(settings) != num_prompts:
        raise ValueError(f"{num_prompts} prompts, but {len(settings)} settings; expected as many")
    return settings
