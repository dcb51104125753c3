"""Which tokenizer a set is made with, in the words of its plan and its manifest."""

import hashlib
from dataclasses import asdict, dataclass, replace

from prep.remote.hub_tokenizer import HubTokenizer
from prep.tokenizer.gpt2 import END_OF_TEXT, VOCAB_SIZE, build_gpt2_json
from shards.disk.json_files import Json
from shards.disk.shapes import OrNull
from shards.widths import choose_token_bytes

# What a plan says about a tokenizer that is not GPT-2's with its usual end of a document.
IN_PLAN_SHAPE = {
    "name": str,
    "vocab_size": int,
    "end_of_text": int,
    "begin_of_text?": int,
    "hub?": {
        "repo": str,
        "requested_revision": OrNull(str),
        "revision": str,
        "end_token": OrNull(str),
    },
}


@dataclass(frozen=True)
class SetTokenizer:
    """What decides the ids of a set, besides the texts."""

    name: str
    # Of the set's tokenizer.json.
    sha256: str
    # One more than the largest id.
    vocab_size: int
    # The ids after each document and, if it was asked for, before it.
    end_of_text: int
    begin_of_text: int | None = None
    # Where it comes from, if that is the Hub: so that resuming asks the Hub for nothing.
    hub: HubTokenizer | None = None

    @property
    def token_bytes(self) -> int:
        """The bytes of an id in the set's shards."""
        return choose_token_bytes(self.vocab_size)

    @property
    def num_before(self) -> int:
        """How many tokens are before each document's text: 0 or 1."""
        return 0 if self.begin_of_text is None else 1

    @property
    def in_plan(self) -> Json | None:
        """What a plan says besides the sha256: nothing for the default, whose plans keep ids."""
        if replace(self, sha256="") == replace(identify_gpt2(), sha256=""):
            return None
        facts = asdict(self)
        return {k: v for k, v in facts.items() if k != "sha256" and v is not None}


def restore_tokenizer(sha256: str, in_plan: Json | None) -> SetTokenizer:
    """The tokenizer of which a plan says this; `in_plan` is of IN_PLAN_SHAPE."""
    if in_plan is None:
        return replace(identify_gpt2(), sha256=sha256)
    hub = HubTokenizer(**in_plan["hub"]) if "hub" in in_plan else None
    return SetTokenizer(**in_plan | {"sha256": sha256, "hub": hub})


def identify_gpt2() -> SetTokenizer:
    """GPT-2's tokenizer, the default."""
    sha256 = hashlib.sha256(build_gpt2_json().encode("utf-8")).hexdigest()
    return SetTokenizer("gpt2", sha256, VOCAB_SIZE, END_OF_TEXT)
