"""Documents and sets of shards that the tests make."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prep.policy import Policy
from prep.request import Request
from prep.run import prepare
from shards.documents import Sidecars
from shards.format import Manifest
from shards.reader import open_shards
from shards.tokenizer import load_tokenizer

COMMON = """the of and to in a is that for it as was with be by on not he his but at are this have
from or had an they which one you were her all she there would their we him been has when who will
more no if out so said what up its about into than them can only other new some could naïve café
北京 Привет 🙂 3.14159 don't we'll <|endoftext|>"""
WORDS = [*COMMON.split(), "x=1;\n\n\t"]


def make_texts(count: int, seed: int = 0, mean_words: int = 60) -> list[str]:
    """Documents of random words, of many lengths, among them one with a single character."""
    generator = random.Random(seed)
    texts = ["."]
    while len(texts) < count:
        length = max(1, int(generator.expovariate(1 / mean_words)))
        texts.append(" ".join(generator.choices(WORDS, k=length)))
    return texts


def write_parquet(path: Path, texts: list[str | None], row_group: int = 50) -> Path:
    """A file with RefinedWeb's columns that prep uses."""
    urls = [f"https://example.com/{path.stem}/{row}" for row in range(len(texts))]
    table = pa.table({"content": pa.array(texts, pa.string()), "url": pa.array(urls, pa.string())})
    pq.write_table(table, path, row_group_size=row_group)
    return path


def write_jsonl(path: Path, texts: list[str | None]) -> Path:
    """A JSON lines file with the same texts."""
    lines = [json.dumps({"content": text}, ensure_ascii=False) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def prepare_until(function: str, out: Path, *inputs: Path, **policy: object) -> None:
    """Begin to make a set, and stop where `function` (a module's) is called: all before is done."""

    def stop(*_: object, **__: object) -> None:
        raise RuntimeError("stopped here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function, stop)
        with pytest.raises(RuntimeError, match="stopped here"):
            prepare_quietly(out, *inputs, **policy)  # type: ignore[arg-type]


def prepare_quietly(
    out: Path, *inputs: Path, workers: int = 1, encoder: str | None = None, **policy: object
) -> Manifest:
    """Make a set; what prep says goes nowhere."""
    request = Request(
        out,
        policy=Policy(**policy),  # type: ignore[arg-type]
        inputs=tuple(str(path) for path in inputs),
        workers=workers,
        encoder=encoder,
    )
    return prepare(request, say=lambda line: None)


def set_bytes(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a set, but for what tells who made it."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "manifest.json"
    }


def write_sources(folder: Path, num_texts: int) -> Path:
    """A parquet and a JSON lines file of so many texts each; returns their folder."""
    write_parquet(folder / "a.parquet", [*make_texts(num_texts)])
    write_jsonl(folder / "b.jsonl", [*make_texts(num_texts, seed=1)])
    return folder


def read_texts(folder: Path) -> dict[tuple[str, str, int], str]:
    """Every document by split, file and row; a blanked one as its tokens decode."""
    shards = open_shards(folder)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    texts = {}
    for split in ("train", "validation"):
        stream = shards.stream(split)
        for document in Sidecars(shards, split).between(0, stream.num_tokens):
            ids = stream.read(document.start, document.num_tokens - 1).tolist()
            text = tokenizer.decode(ids, skip_special_tokens=document.is_blank)
            texts[split, document.source_file, document.source_row] = text
    return texts
