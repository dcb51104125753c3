"""The tokenizer of a folder: the one that the options name, or that of the set to append to."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from prep.request import TOKENIZER_OPTIONS, Request
from prep.tokenizer.added import add_specials
from prep.tokenizer.choose import (
    GPT2,
    TokenizerFile,
    fetch_tokenizer,
    find_tokenizer,
    identify,
    parse_hub_name,
)
from prep.tokenizer.gpt2 import build_gpt2_json
from prep.tokenizer.identity import SetTokenizer, identify_gpt2, restore_tokenizer
from prep.units.workspace import write_first
from shards.disk.durable import hash_file, write_file
from shards.disk.json_files import Json
from shards.disk.layout import TOKENIZER, plan_path, temporary_folder
from shards.format import read_manifest
from shards.screen.lines import Say
from shards.tokenizer import read_tokenizer_json

# The text of a set's tokenizer.json, and which tokenizer it is.
Chosen = tuple[str, SetTokenizer]


def choose_tokenizer(
    request: Request, stored: Json | None, say: Say, specials: Sequence[str] = ()
) -> Chosen:
    """The tokenizer that the request means; one of the Hub stays as the stored plan pinned it.

    It gets the `specials` that it lacks.
    """
    if request.after is not None:
        return choose_same(request, request.after, say, specials)
    words = [getattr(request, name) for name in TOKENIZER_OPTIONS]
    # Known without loading it.
    if words in ([None, None, None], [GPT2, None, None]) and not specials:
        return build_gpt2_json(), identify_gpt2()
    file = find_pinned(request, stored, say) or find_tokenizer(request.tokenizer or GPT2, say)
    file = add_specials(file, specials)
    return file.text, identify(file, request.end_of_document, request.begin_of_document)


def find_pinned(request: Request, stored: Json | None, say: Say) -> TokenizerFile | None:
    """The tokenizer of the Hub that a stored plan pinned, if the request still names it.

    Nothing is asked for while the set's tokenizer.json is there.
    """
    words = request.tokenizer or GPT2
    if stored is None or Path(words).exists():
        return None
    before = restore_tokenizer(stored["tokenizer_sha256"], stored.get("tokenizer"))
    hub = before.hub
    if hub is None or parse_hub_name(words) != (hub.repo, hub.requested_revision):
        return None
    path = request.out / TOKENIZER
    if not path.is_file() or hash_file(path) != before.sha256:
        return fetch_tokenizer(hub.repo, hub.requested_revision, say, hub)
    text = read_tokenizer_json(path)
    return TokenizerFile(f"{hub.repo}: {TOKENIZER}", text, hub.repo, hub.end_token, hub)


def choose_same(request: Request, folder: Path, say: Say, specials: Sequence[str] = ()) -> Chosen:
    """The tokenizer of the finished set in `folder`; ValueError if the options mean another."""
    tokenizer = read_set_tokenizer(folder)
    text = read_tokenizer_json(folder / TOKENIZER)
    file = TokenizerFile(str(folder / TOKENIZER), text)
    if request.tokenizer is not None:
        file = add_specials(find_tokenizer(request.tokenizer, say), specials)
    differences = []
    if file.text != text:
        differences = [f"tokenizer was {tokenizer.name}, is now {request.tokenizer}"]
    elif request.end_of_document or request.begin_of_document:
        begin = tokenizer.begin_of_text
        wanted = identify(
            file,
            request.end_of_document or str(tokenizer.end_of_text),
            request.begin_of_document or (None if begin is None else str(begin)),
        )
        differences = describe_marks(tokenizer, wanted)
    if differences:
        raise ValueError(
            f"{folder}: was made with another tokenizer: {'; '.join(differences)}; leave the "
            "options out: what is appended is encoded with the set's own"
        )
    return text, tokenizer


def read_set_tokenizer(folder: Path) -> SetTokenizer:
    """The tokenizer of a finished set; ValueError if its file is no longer the one."""
    facts = read_manifest(folder).content["tokenizer"]
    path = folder / TOKENIZER
    if not path.is_file() or hash_file(path) != facts["sha256"]:
        raise ValueError(
            f"{path}: is not the tokenizer that this set was made with (sha256); restore the file "
            "from where the set was made, and append then"
        )
    return SetTokenizer(
        facts["name"],
        facts["sha256"],
        facts["vocab_size"],
        facts["end_of_text"],
        facts.get("begin_of_text"),
    )


def describe_tokenizers(before: SetTokenizer, now: SetTokenizer) -> list[str]:
    """How two tokenizers differ, in words."""
    differences = []
    if before.name != now.name:
        differences.append(f"tokenizer was {before.name}, is now {now.name}")
    elif before.sha256 != now.sha256:
        differences.append(f"the tokenizer ({now.name}) is different")
    elif before.hub != now.hub:
        wanted = [(t.hub and t.hub.requested_revision) or "the newest" for t in (before, now)]
        differences.append(f"the tokenizer's revision was {wanted[0]}, is now {wanted[1]}")
    return differences + describe_marks(before, now)


def describe_marks(before: SetTokenizer, now: SetTokenizer) -> list[str]:
    """How the tokens around documents differ, in words."""
    return [
        f"the token {place} each document was {old}, is now {new}"
        for place, old, new in (
            ("after", before.end_of_text, now.end_of_text),
            ("before", before.begin_of_text, now.begin_of_text),
        )
        if old != new
    ]


def write_beside(out: Path, name: str, text: str) -> None:
    """Put a file that decides the tokens into the set: tokenizer.json, or a chat template.

    What an earlier command put there is replaced if it has a plan, which binds nobody yet. Without
    one, another file of that name may be anyone's.
    """
    path = out / name
    if path.exists() and hash_file(path) != hashlib.sha256(text.encode("utf-8")).hexdigest():
        if not plan_path(out).exists():
            raise ValueError(
                f"{path}: is not the {'tokenizer' if name == TOKENIZER else 'template'} that this "
                "set is to be made with; remove it, or choose another --out"
            )
        write_file(path, text)
    elif not path.exists():
        write_first(path, text, temporary_folder(out))
