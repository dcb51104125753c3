"""A set's tokenizer as a checkpoint keeps it: a text becomes what it would be in the set.

A tokenizer.json may say which tokens to put around a text (Llama 3's puts <|begin_of_text|> before
each), and how to cut or fill it. Nothing of that was done to the set's documents, so the copy does
not say it. The token that begins each document, if the set has one, is put before a text.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from model.checkpoints.hugging_face import Boundaries, Json

END_OF_TEXT = "<|endoftext|>"
# The kinds of post-processors that add tokens. The others only move offsets.
ADDING = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")


@dataclass(frozen=True)
class KeptTokenizer:
    """A tokenizer.json and the ids between documents, and what a checkpoint's files say of them."""

    # The set's tokenizer.json.
    text: str
    boundaries: Boundaries

    @cached_property
    def content(self) -> Json:
        """The same, parsed."""
        content: Json = json.loads(self.text)
        return content

    def make_tokenizer_json(self) -> str:
        """The checkpoint's tokenizer.json: the set's own, byte for byte, if that does the same."""
        kept = [step for step in list_steps(self.content) if step["type"] not in ADDING]
        begin = self.boundaries.begin
        if begin is not None:
            kept.append(make_template(self._spell(begin), begin))
        if len(kept) > 1:
            wanted: Json | None = {"type": "Sequence", "processors": kept}
        else:
            wanted = kept[0] if kept else None
        changes = {"post_processor": wanted, "truncation": None, "padding": None}
        if all(self.content.get(key) == value for key, value in changes.items()):
            return self.text
        return json.dumps(self.content | changes, ensure_ascii=False)

    def load(self) -> Tokenizer:
        """The checkpoint's tokenizer, to which text that spells a special token is text."""
        tokenizer = Tokenizer.from_str(self.make_tokenizer_json())
        tokenizer.encode_special_tokens = True  # As in prep.
        return tokenizer

    def make_tokenizer_config_json(self, context: int) -> Json:
        """tokenizer_config.json: encodes as in training, except that eos_token can be written.

        Text that spells <|endoftext|> is text to prep and to our own sampling, which say so to the
        tokenizer (model/checkpoints/tokenizer.py). Others end their documents with it, so to them
        it is the token.
        """
        end = self._spell(self.boundaries.end)
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "add_bos_token": self.boundaries.begin is not None,
            # transformers 4 changes a byte-level tokenizer.json to what stands here.
            "add_prefix_space": (self.content.get("pre_tokenizer") or {}).get(
                "add_prefix_space", False
            ),
            "bos_token": self._spell(self.boundaries.first),
            "eos_token": end,
            "pad_token": end,
            "unk_token": self._find_unknown() or end,
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
        }

    def _find_unknown(self) -> str | None:
        """What stands for text that has no id; None where all text has ids."""
        model = self.content["model"]
        if model.get("unk_id") is not None:
            return str(model["vocab"][model["unk_id"]][0])
        return model.get("unk_token") or None

    def _spell(self, token: int) -> str:
        """A token as the tokenizer writes it."""
        for added in self.content.get("added_tokens") or ():
            if added["id"] == token:
                return str(added["content"])
        vocab = self.content["model"]["vocab"]
        if isinstance(vocab, list):
            return str(vocab[token][0])
        return str(next(text for text, found in vocab.items() if found == token))


def find_end_of_text(text: str) -> int:
    """The id of <|endoftext|> in a tokenizer.json; ValueError if it has no such token."""
    for token in json.loads(text).get("added_tokens", []):
        if token["content"] == END_OF_TEXT:
            return int(token["id"])
    raise ValueError(f"the tokenizer has no special token {END_OF_TEXT}, which ends a document")


def list_steps(content: Json) -> Iterator[Json]:
    """The post-processors of a tokenizer, one after another."""
    waiting: list[Any] = [content.get("post_processor")]
    while waiting:
        step = waiting.pop(0)
        if step and step["type"] == "Sequence":
            waiting = [*step["processors"], *waiting]
        elif step:
            yield step


def make_template(token: str, number: int) -> Json:
    """The post-processor that puts a token before each text."""
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
