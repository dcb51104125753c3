"""The chat templates that come with this package, and the special tokens that each needs."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("templates")
# What messages become if nothing else is said.
CHATML = "chatml"


@dataclass(frozen=True)
class BuiltIn:
    """A built-in template."""

    name: str
    # The special tokens that it writes, besides those that every tokenizer has.
    specials: tuple[str, ...]

    @property
    def source(self) -> str:
        """The template's text, in Jinja."""
        return (FOLDER / f"{self.name}.jinja").read_text(encoding="utf-8")


# chatml is what most models are tuned with; plain needs no tokens that a model has not seen.
BUILT_IN = {
    CHATML: BuiltIn(CHATML, ("<|im_start|>", "<|im_end|>")),
    "plain": BuiltIn("plain", ()),
}
