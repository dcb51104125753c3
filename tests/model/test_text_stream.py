"""Streamed text is what the tokenizer decodes the whole to, whatever its kind."""

import json
import random
from itertools import accumulate

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model.decode.text_stream import TextStream
from tests.vocabularies import NAMES, build

PROMPTS = ("", "Once upon", "北京 x", "a  ", "the 🙂", " def f(x):\n", "<s>", "ß")
PIECES = ("北", "naïve 🙂", " the\n\n", "  x", "", "ß", "</s> y", "don't")


def parse(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    return tokenizer


def make_words() -> str:
    """A tokenizer without a decoder: words, between which a space is put."""
    words = ["<unk>", "Once", "upon", "a", "time"]
    tokenizer = Tokenizer(models.WordLevel(dict(zip(words, range(5), strict=True)), "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return str(tokenizer.to_str())


def make_word_piece() -> str:
    """BERT's shape, whose decoder closes up words and what follows them."""
    pieces = ["[UNK]", "Once", "up", "##on", ".", ",", "'", "s", "a", "n", "##t", "do"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return str(tokenizer.to_str())


def make_with_suffixes() -> str:
    """The first BPEs' shape: a mark at the end of each word, which becomes a space."""
    pieces = ["<unk>", "o", "n", "c", "e", "e</w>", "n</w>", "upon</w>", "."]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    return str(tokenizer.to_str())


def make_llama2() -> str:
    """Llama 2's decoder, with a vocabulary to count on, and ids that stand for nothing."""
    pieces = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁▁",
        "▁the",
        "▁list",
        "s",
        "",
    ]
    vocab = {piece: 3 * i for i, piece in enumerate(pieces)}
    raw = json.loads(build("sentencepiece"))
    raw["model"] |= {"vocab": vocab, "merges": []}
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] == "<unk>"]
    return json.dumps(raw)


TOKENIZERS = {
    **{name: lambda name=name: build(name) for name in NAMES},
    "words": make_words,
    "word_piece": make_word_piece,
    "suffixes": make_with_suffixes,
    "llama2": make_llama2,
}


def draw_tokens(tokenizer: Tokenizer, num_ids: int, draw: random.Random) -> list[int]:
    """Tokens of texts, any tokens, and bytes that are not UTF-8."""
    tokens: list[int] = []
    for _ in range(10):
        tokens += tokenizer.encode(draw.choice(PIECES), add_special_tokens=False).ids
        tokens += [draw.randrange(num_ids) for _ in range(draw.randrange(3))]
        names = [f"<0x{draw.randrange(256):02X}>" for _ in range(draw.randrange(4))]
        tokens += [i for name in names if (i := tokenizer.token_to_id(name)) is not None]
    return tokens


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_join_to_what_the_whole_decodes_to(name: str) -> None:
    tokenizer = parse(TOKENIZERS[name]())
    draw, num_ids = random.Random(0), 1 + max(tokenizer.get_vocab().values())
    for _ in range(60):
        prompt = draw.choice(PROMPTS)
        context: list[int] = tokenizer.encode(prompt, add_special_tokens=False).ids
        tokens = draw_tokens(tokenizer, num_ids, draw)
        stream = TextStream(tokenizer, context=context)
        found = "".join([*map(stream.push, tokens), stream.finish()])
        before: str = tokenizer.decode(context, skip_special_tokens=False)
        whole: str = tokenizer.decode([*context, *tokens], skip_special_tokens=False)
        assert found == whole[len(before) :]


def test_a_space_is_left_out_only_where_a_text_begins() -> None:
    tokenizer = parse(make_llama2())
    once = [tokenizer.token_to_id(token) for token in ("▁the", "▁list")]
    alone, after = TextStream(tokenizer), TextStream(tokenizer, context=once)
    assert [alone.push(i) for i in once] == ["the", " list"]
    assert [after.push(i) for i in once] == [" the", " list"]
    spaces = [tokenizer.token_to_id(token) for token in ("▁", "▁▁", "▁the")]
    assert [after.push(i) for i in spaces] == [" ", "  ", " the"]
    empty, nothing = tokenizer.token_to_id(""), 1
    assert tokenizer.id_to_token(nothing) is None
    for silent in (empty, nothing):
        assert [after.push(i) for i in (silent, *once)] == ["", " the", " list"]


def test_words_are_shown_as_they_come() -> None:
    """What is held back is at most one character or one row of byte tokens."""
    for name in NAMES:
        tokenizer = parse(build(name))
        tokens = tokenizer.encode("the list of names in a module", add_special_tokens=False).ids
        stream = TextStream(tokenizer)
        shown = [*accumulate(map(stream.push, tokens))]
        assert all(map(len, shown)), name
        assert len({*shown}) == len(tokens), name


def test_a_row_of_byte_tokens_is_shown_once_it_is_whole() -> None:
    tokenizer = parse(make_llama2())
    smile = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "🙂".encode()]
    the = tokenizer.token_to_id("▁the")
    stream = TextStream(tokenizer, stops=["\N{SLIGHTLY SMILING FACE} t"])
    assert [*map(stream.push, [the, *smile])] == ["the", "", "", "", ""]
    assert stream.push(the) == ""
    assert stream.stopped
