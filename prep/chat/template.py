"""`--template`: the chat template of a set, the special tokens that it needs, and its trial."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from model.chat.builtin import BUILT_IN, CHATML
from model.chat.encode import ASSISTANT, Chat, ChatEncoder, EncodedChat
from model.chat.template import ChatTemplate, RendererCrash, find_template, read_template
from prep.chat.rows import SYSTEM, USER, make_message
from prep.policy import Policy
from prep.request import Request
from prep.tokenizer.identity import SetTokenizer
from shards.disk.durable import hash_file
from shards.disk.json_files import Json
from shards.disk.layout import CHAT_TEMPLATE, TOKENIZER
from shards.format import read_manifest
from shards.tokenizer import load_tokenizer, parse_tokenizer, read_tokenizer_json

EOS_TOKEN = "eos_token"


@dataclass(frozen=True)
class SetTemplate:
    """A chat template for a set."""

    # What errors call it.
    place: str
    # In Jinja.
    source: str
    # The special tokens that it knows by name, such as eos_token.
    tokens: Mapping[str, str] = field(default_factory=dict)
    # Those that the tokenizer must have for it.
    specials: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the file in the set."""
        return hashlib.sha256(self.source.encode("utf-8")).hexdigest()


def choose_template(request: Request) -> SetTemplate:
    """The template that --template names; else that of --tokenizer's folder, or ChatML."""
    beside = None
    if request.tokenizer is not None and Path(request.tokenizer).is_dir():
        beside = read_folder(Path(request.tokenizer))
    if request.after is not None:
        return choose_same(request)
    if request.template is None:
        return beside or make_built_in(CHATML)
    found = read_named(request.template)
    return replace(found, tokens=found.tokens or (beside.tokens if beside else {}))


def choose_same(request: Request) -> SetTemplate:
    """The template of the finished set; ValueError if the options name another one."""
    assert request.after is not None
    policy = read_manifest(request.after).content["policy"]
    path = request.after / CHAT_TEMPLATE
    if not path.is_file() or hash_file(path) != policy.get("template_sha256"):
        raise ValueError(
            f"{path}: is not the template that this set was made with (sha256); restore the file "
            "from where the set was made, and append then"
        )
    tokens = dict(entry.split("=", 1) for entry in policy.get("template_tokens", ()))
    found = SetTemplate(str(path), path.read_bytes().decode("utf-8"), tokens)
    if request.template is not None and read_named(request.template).source != found.source:
        raise ValueError(
            f"{request.after}: was made with another template than --template {request.template}; "
            "leave the option out: what is appended is made with the set's own"
        )
    return found


def read_named(words: str) -> SetTemplate:
    """The template in a file or folder, or the built-in one of that name; ValueError if none."""
    path = Path(words)
    if path.is_dir():
        found = read_folder(path)
        if found is None:
            raise ValueError(
                f"{path}: has no chat template (neither {CHAT_TEMPLATE} nor chat_template in its "
                f"tokenizer_config.json); name a file, or one of ours: {', '.join(BUILT_IN)}"
            )
        return found
    if path.is_file():
        return SetTemplate(str(path), read_template(path))
    if words not in BUILT_IN:
        raise ValueError(
            f"--template is {words!r:.200}: no such file or folder; expected a file, a folder that "
            f"has a chat template, or one of ours: {', '.join(BUILT_IN)}"
        )
    return make_built_in(words)


def make_built_in(name: str) -> SetTemplate:
    """A built-in template."""
    found = BUILT_IN[name]
    return SetTemplate(f"the template {name}", found.source, {}, found.specials)


def read_folder(folder: Path) -> SetTemplate | None:
    """The template of a model's folder, with its special tokens; None if it has none."""
    found = find_template(folder)
    if found is None:
        return None
    return SetTemplate(f"{folder}: its chat template", found.source, found.variables)


def pin_template(
    policy: Policy, template: SetTemplate, tokenizer_json: str, tokenizer: SetTokenizer
) -> Policy:
    """The policy with the template in it, once it was tried.

    ValueError for a template of which it cannot be told what an assistant wrote, or that does not
    end its turns.
    """
    tokens = dict(template.tokens)
    tokens.setdefault(EOS_TOKEN, name_token(tokenizer_json, tokenizer.end_of_text))
    try_template(ChatTemplate(template.source, tokens, has_clock=False), tokenizer_json, template)
    named = tuple(f"{name}={token}" for name, token in sorted(tokens.items()))
    return replace(policy, template_sha256=template.sha256, template_tokens=named)


def name_token(tokenizer_json: str, token: int) -> str:
    """The text of a special token."""
    return str(parse_tokenizer(tokenizer_json).id_to_token(token))


def try_template(
    template: ChatTemplate, tokenizer_json: str, named: SetTemplate | None = None
) -> EncodedChat:
    """A short chat, made by the template; ValueError if it cannot be trained with."""
    place = named.place if named else CHAT_TEMPLATE
    asked = [make_message(USER, "Hi"), make_message(ASSISTANT, "Hello.")]
    before = [make_message(SYSTEM, "Be short.")]
    try:
        encoder = ChatEncoder(template, tokenizer_json)
        found = encoder.encode([Chat(asked), Chat([*before, *asked])])
    except RendererCrash as error:
        raise ValueError(f"{place}: the process that runs it crashed: {error}") from None
    finally:
        template.close()
    for result in found:
        if isinstance(result, EncodedChat):
            return result
    raise ValueError(f"{place}: cannot be trained with: {found[0]}")


def describe_chat(folder: Path, policy: Policy, kind: str) -> Json:
    """What the manifest says of a set's chats, but for how many tokens are trained on."""
    path = folder / CHAT_TEMPLATE
    if not path.is_file() or hash_file(path) != policy.template_sha256:
        raise ValueError(
            f"{path}: no longer matches the plan; remove it and run the same command again, which "
            "writes it"
        )
    tokens = dict(entry.split("=", 1) for entry in policy.template_tokens)
    source = path.read_bytes().decode("utf-8")
    chat = try_template(
        ChatTemplate(source, tokens, has_clock=False), read_tokenizer_json(folder / TOKENIZER)
    )
    return {
        "kind": kind,
        "template_sha256": policy.template_sha256,
        "tokens": tokens,
        "end_of_turn": find_end(chat, folder),
    }


def find_end(chat: EncodedChat, folder: Path) -> int:
    """The special token that ends what an assistant writes."""
    added = load_tokenizer(folder / TOKENIZER).get_added_tokens_decoder()
    begin, end = chat.spans[-1].tolist()
    specials = [i for i in chat.ids[begin:end].tolist() if i in added and added[i].special]
    return int(specials[-1])
