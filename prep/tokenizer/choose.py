"""`--tokenizer`: a tokenizer.json from anywhere, read as what it is: somebody else's file.

A set keeps the file byte for byte, unless it says what would cut or change documents at random.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from prep.remote.hf_paths import find_commit
from prep.remote.hub_tokenizer import HubTokenizer, fetch_small
from prep.remote.retry import SourceError
from prep.tokenizer.gpt2 import build_gpt2_json
from prep.tokenizer.identity import SetTokenizer
from prep.tokenizer.library import LibraryError, catching
from prep.tokenizer.specials import find_merged
from shards.disk.json_files import Json, parse_json, read_json
from shards.disk.layout import TOKENIZER
from shards.disk.shapes import find_misshape
from shards.screen.lines import Say
from shards.tokenizer import count_ids, parse_tokenizer

GPT2 = "gpt2"
# What a set made with a file of this machine calls its tokenizer: its path is nobody else's.
CUSTOM = "custom"
TOKENIZER_CONFIG = "tokenizer_config.json"
# What `tokenizers` needs; the rest may be missing.
TOKENIZER_SHAPE = {"model": dict, "added_tokens?": [{"content": str, "special": bool}]}
# Tokens that end a document wherever they are special, the clearest first.
END_TOKENS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|end|>",
)
# The name of a repository on the Hub, and what of it.
HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@(.+))?", re.ASCII)
MAX_NAMED = 8
CONVERT = "convert it with `transformers` (save_pretrained of a fast tokenizer) and give that file"


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer as it was found."""

    # What errors call it.
    place: str
    # Of its tokenizer.json, as a set will keep it.
    text: str
    name: str = CUSTOM
    # The eos_token that the tokenizer_config.json beside it names.
    end_token: str | None = None
    hub: HubTokenizer | None = None


def read_tokenizer(path: Path, say: Say) -> TokenizerFile:
    """The tokenizer of a local file, or of the tokenizer.json in a folder."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        path = path / TOKENIZER
        if not path.is_file():
            raise ValueError(f"{folder}: has no {TOKENIZER}; {CONVERT}")
    content = read_json(path)
    config = folder / TOKENIZER_CONFIG
    end_token = None
    if path.name == TOKENIZER and config.is_file():
        end_token = find_end_token(parse_json(read_json(config), config))
    return TokenizerFile(str(path), clean(content, str(path), say), end_token=end_token)


def find_end_token(config: Json) -> str | None:
    """The text of the eos_token in a tokenizer_config.json, if it names one."""
    token = config.get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def clean(content: bytes, place: str, say: Say) -> str:
    """The text of a tokenizer.json, without what would cut, fill up or change a document.

    Raises ValueError if it is none.
    """
    raw = parse_json(
        content, place, f"; expected a {TOKENIZER}; if it is another format, {CONVERT}"
    )
    fault = find_misshape(raw, TOKENIZER_SHAPE)
    if fault is not None:
        raise ValueError(f"{place}: is not a {TOKENIZER} ({fault}); {CONVERT}")
    model = raw["model"]
    wrong = [key for key in ("truncation", "padding") if raw.get(key) is not None]
    wrong += ["dropout"] if model.get("dropout") else []
    if not wrong:
        return content.decode("utf-8")
    say(f"{place}: its {', '.join(wrong)} would change documents; turned off in this set")
    raw |= {key: None for key in wrong if key in raw}
    if "dropout" in wrong:
        model["dropout"] = None
    return json.dumps(raw, indent=1, ensure_ascii=False) + "\n"


def identify(file: TokenizerFile, end: str | None = None, begin: str | None = None) -> SetTokenizer:
    """The tokenizer of a set made with this file; `end` and `begin` are tokens or ids, as asked.

    Raises ValueError if it is no tokenizer, has no such tokens, or no clear end of a document.
    """
    tokenizer = load(file)
    merged = find_merged(json.loads(file.text))
    if merged is not None:
        raise ValueError(
            f"{file.place}: its merges make the special token {merged!r:.60} of text that spells "
            "it; take that token out of the merges, or choose another tokenizer"
        )
    specials = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    sha256 = hashlib.sha256(file.text.encode("utf-8")).hexdigest()
    is_gpt2 = file.text == build_gpt2_json()
    begin_id = None
    if begin is not None:
        begin_id = find_special(file, specials, "--begin-of-document", begin)
    return SetTokenizer(
        GPT2 if is_gpt2 else file.name,
        sha256,
        count_ids(tokenizer),
        choose_end(file, specials, end),
        begin_id,
        None if is_gpt2 else file.hub,
    )


def load(file: TokenizerFile) -> Tokenizer:
    """The tokenizer; ValueError if `tokenizers` does not make one of the file."""
    try:
        with catching():
            return parse_tokenizer(file.text)
    except LibraryError as error:
        raise ValueError(
            f"{file.place}: `tokenizers` cannot read it ({error}); "
            "check the file, or write it again with the library that made it"
        ) from None


def choose_end(file: TokenizerFile, specials: dict[int, str], end: str | None) -> int:
    """The id after each document: as asked for, as said beside the file, or by its usual name."""
    if end is not None:
        return find_special(file, specials, "--end-of-document", end)
    ids = {content: i for i, content in specials.items()}
    if file.end_token is not None and file.end_token not in ids:
        raise ValueError(
            f"{file.place}: the {TOKENIZER_CONFIG} beside it names the eos_token "
            f"{file.end_token!r:.60}, which is no special token of it; name one with "
            f"--end-of-document: {list_tokens(specials)}"
        )
    for token in (file.end_token, *END_TOKENS):
        if token in ids:
            return ids[token]
    raise ValueError(
        f"{file.place}: which token ends a document is not clear; name one of its special tokens "
        f"with --end-of-document: {list_tokens(specials)}"
    )


def find_special(file: TokenizerFile, specials: dict[int, str], option: str, asked: str) -> int:
    """The id of a special token that an option names by its text or its id."""
    for i, content in specials.items():
        if asked == content:
            return i
    if asked.isascii() and asked.isdigit() and len(asked) < 10 and int(asked) in specials:
        return int(asked)
    raise ValueError(
        f"{option} is {asked!r:.60}, which is no special token of {file.place}, so text could "
        f"become it; expected one of: {list_tokens(specials)}"
    )


def list_tokens(specials: dict[int, str]) -> str:
    """The special tokens, the first few, for a message."""
    shown = [f"{content} ({i})" for i, content in sorted(specials.items())]
    more = f" and {len(shown) - MAX_NAMED} more" if len(shown) > MAX_NAMED else ""
    return ", ".join(shown[:MAX_NAMED]) + more or "it has none"


def find_tokenizer(words: str, say: Say) -> TokenizerFile:
    """The tokenizer that --tokenizer names: GPT-2's own, a file or folder, or one of the Hub."""
    name = find_repository(words)
    if name is not None:
        say(f"asking the Hub for the tokenizer of {words}")
        return fetch_tokenizer(*name, say)
    if words == GPT2:
        return TokenizerFile(GPT2, build_gpt2_json(), GPT2)
    return read_tokenizer(Path(words), say)


def find_repository(words: str) -> tuple[str, str | None] | None:
    """The repository of the Hub and the revision that --tokenizer names; None for what is here.

    ValueError if it names nothing at all.
    """
    if words == GPT2 or Path(words).exists():
        return None
    name = parse_hub_name(words)
    if name is None:
        raise ValueError(
            f"--tokenizer is {words!r:.200}: no such file or folder; expected {GPT2}, a "
            f"{TOKENIZER}, a folder that has one, or a repository of the Hub (owner/name)"
        )
    return name


def parse_hub_name(words: str) -> tuple[str, str | None] | None:
    """The repository of the Hub and the revision that --tokenizer names; None for other words.

    >>> parse_hub_name("owner/name@v1.0"), parse_hub_name("folder/tokenizer.json")
    (('owner/name', 'v1.0'), None)
    """
    match = HUB_NAME.fullmatch(words)
    if match is None or match[1].startswith(".") or match[1].endswith(".json"):
        return None
    return match[1], match[2]


def fetch_tokenizer(
    repo: str, revision: str | None, say: Say, pinned: HubTokenizer | None = None
) -> TokenizerFile:
    """The tokenizer of a repository of the Hub, at the commit that the revision names now.

    If it is `pinned`, at that commit. Raises SourceError for what the Hub does not give.
    """
    if pinned is None:
        _, commit, names = find_commit(repo, revision, kind="model")
        if TOKENIZER not in names:
            raise SourceError(f"{repo}: has no {TOKENIZER}; {CONVERT}")
        end_token = None
        if TOKENIZER_CONFIG in names:
            config = fetch_small(repo, commit, TOKENIZER_CONFIG)
            end_token = find_end_token(parse_json(config, f"{repo}: {TOKENIZER_CONFIG}"))
        pinned = HubTokenizer(repo, revision, commit, end_token)
    place = f"{repo}: {TOKENIZER}"
    text = clean(fetch_small(repo, pinned.revision, TOKENIZER), place, say)
    return TokenizerFile(place, text, repo, pinned.end_token, pinned)
