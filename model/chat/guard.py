"""Text that spells a special token stays text, while what a template writes of them is tokens.

    messages   what would spell a special token gets another character there: a stand-in
    template   renders; the special tokens in the text are now its own alone
    tokens     the text's special tokens get names that no text spells, which the tokenizer knows
               them by; then the stand-ins become again what they stand for

So the whole text is tokenized at once, and where no message spells a special token, as any other
reader of the template tokenizes it.
"""

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from model.chat.template import RenderError

# Characters that stand for others: of a plane for private use, which hardly any text has.
FIRST_STAND_IN, LAST_STAND_IN = 0xF0000, 0x10FFFD
# So many of them may be in the texts of a chat: the others are enough for any tokenizer.
MAX_PRIVATE = 2**16
PRIVATE = re.compile(f"[{chr(FIRST_STAND_IN)}-{chr(LAST_STAND_IN)}]")
# What tells a role: templates make special tokens of it, so it is no text (model/chat/encode.py
# says which roles there are).
ROLE = "role"

Json = dict[str, Any]


class Guard:
    """Keeps the special tokens of a tokenizer out of texts."""

    def __init__(self, specials: Iterable[str], reserved: str = "") -> None:
        """`reserved` has characters that are not to be stand-ins: the template's."""
        tokens = sorted({token for token in specials if token}, key=len, reverse=True)
        nonce = secrets.token_hex(16)
        # The names by which the tokenizer knows them; each ends where it ends, whatever follows.
        self.names = {token: f"\0{nonce} {number}\0" for number, token in enumerate(tokens)}
        self._reserved = {*PRIVATE.findall(reserved)}
        words = "|".join(map(re.escape, tokens))
        # The first character of each token, where one begins inside of another as well.
        self._begins = re.compile(f"(?=(?:{words})).", re.DOTALL) if tokens else None
        self._tokens = re.compile(words) if tokens else None
        # What could become a token together with what a template, or another text, puts beside it.
        self._heads = {token[:size] for token in tokens for size in range(1, len(token))}
        self._tails = {token[-size:] for token in tokens for size in range(1, len(token))}
        self._cores = {t[a:b] for t in tokens for a in range(len(t)) for b in range(a + 1, len(t))}
        self._longest = max((len(token) for token in tokens), default=1)

    def protect(self, messages: list[Json]) -> tuple[list[Json], "StandIns"]:
        """The messages with stand-ins for what could spell a special token, but in their roles.

        RenderError where their own characters leave none to stand in.
        """
        texts = [*find_texts(messages)]
        used = self._reserved.union(*(PRIVATE.findall(text) for text in texts))
        if len(used) > MAX_PRIVATE:
            raise RenderError(
                f"they have {len(used):,} different characters of the planes for private use; "
                f"expected at most {MAX_PRIVATE:,}"
            )
        stand_ins = StandIns(used)
        protected = [
            {k: v if k == ROLE else self._protect(v, stand_ins) for k, v in message.items()}
            for message in messages
        ]
        return protected, stand_ins

    def name_tokens(self, text: str, places: list[int]) -> tuple[str, list[int]]:
        """The text with its special tokens by their names, and where its ascending `places` are."""
        if self._tokens is None:
            return text, places
        pieces: list[str] = []
        found: list[int] = []
        position = size = 0
        for match in self._tokens.finditer(text):
            while len(found) < len(places) and places[len(found)] < match.end():
                found.append(size + min(places[len(found)], match.start()) - position)
            name = self.names[match[0]]
            pieces += [text[position : match.start()], name]
            size += match.start() - position + len(name)
            position = match.end()
        found += [size + place - position for place in places[len(found) :]]
        return "".join([*pieces, text[position:]]), found

    def _protect(self, value: Any, stand_ins: "StandIns") -> Any:
        if isinstance(value, str):
            return self._replace(value, stand_ins)
        if isinstance(value, list):
            return [self._protect(one, stand_ins) for one in value]
        if isinstance(value, dict):
            return {key: self._protect(one, stand_ins) for key, one in value.items()}
        return value

    def _replace(self, text: str, stand_ins: "StandIns") -> str:
        """The text with stand-ins, so that neither it nor a part of it can form a special token."""
        if self._begins is None or not text:
            return text
        wrong = {match.start() for match in self._begins.finditer(text)}
        for size in range(1, min(self._longest, len(text) + 1)):
            if text[-size:] in self._heads:
                wrong.add(len(text) - size)
            if text[:size] in self._tails:
                wrong.add(size - 1)
        if text in self._cores:
            wrong.add(0)
        if not wrong:
            return text
        return "".join(stand_ins.take(c) if i in wrong else c for i, c in enumerate(text))


class StandIns:
    """The stand-ins of one chat: characters that do not occur in it."""

    def __init__(self, used: set[str]) -> None:
        self._free = (
            chr(point) for point in range(FIRST_STAND_IN, LAST_STAND_IN) if chr(point) not in used
        )
        # Marks of the beginning and the end of what an assistant wrote.
        self.marks = next(self._free), next(self._free)
        self._known: dict[str, str] = {}

    def take(self, character: str) -> str:
        """What stands for a character."""
        if character not in self._known:
            self._known[character] = next(self._free)
        return self._known[character]

    def restore(self, text: str) -> str:
        """The text with the characters themselves."""
        table = {ord(stand_in): character for character, stand_in in self._known.items()}
        return text.translate(table) if table else text

    def cut_marks(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """The text without its marks, and where what they mark begins and ends in it."""
        begin, end = self.marks
        pieces = re.split(f"([{begin}{end}])", text)
        spans: list[tuple[int, int]] = []
        size, opened, depth = 0, 0, 0
        for piece in pieces:
            if piece == begin:
                opened, depth = (size, 1) if depth == 0 else (opened, depth + 1)
            elif piece == end:
                depth -= 1
                spans += [(opened, size)] if depth == 0 else []
            else:
                size += len(piece)
        return "".join(piece for piece in pieces if piece not in self.marks), spans


def find_texts(value: Any) -> Iterator[str]:
    """All texts in messages, the keys of objects too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from find_texts(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from find_texts(key)
            yield from find_texts(one)


def rename_tokens(raw: Json, names: Mapping[str, str]) -> Json:
    """A tokenizer.json in which some tokens have other names, and the same ids.

    No token is left out: `tokenizers` numbers the added ones by what was there before.
    """
    model = dict(raw["model"])
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    elif vocab is not None:
        model["vocab"] = {names.get(token, token): i for token, i in vocab.items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    added = [
        t | {"content": names[t["content"]], "normalized": False} if t["content"] in names else t
        for t in raw.get("added_tokens", [])
    ]
    return raw | {"model": model, "added_tokens": added, "post_processor": None}
