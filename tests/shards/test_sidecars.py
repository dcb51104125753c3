"""Sidecars that are not what their shard needs: one line in every command, and bounded memory."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.disk.durable import hash_file
from shards.format import read_manifest
from shards.rows import find_groups, read_rows, take_rows
from shards.sidecar import SIDECAR_SCHEMA
from tests.commands import velocity
from tests.manifests import edit_manifest
from tests.texts import make_texts, prepare_quietly, write_parquet

NEVER = "11" * 16
Edit = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module")
def finished_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    source = write_parquet(folder / "source.parquet", [*make_texts(60)])
    prepare_quietly(folder / "shards", source, validation_fraction="0.2")
    return folder / "shards"


@pytest.fixture
def shards_copy(finished_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_set, tmp_path / "shards"))


def edit_sidecar(folder: Path, edit: Edit, **options: Any) -> Path:
    """Write the first shard's sidecar anew; the manifest gets its hash, as if it were made so."""
    shard = read_manifest(folder).shards[0]
    path = folder / shard.sidecar
    pq.write_table(edit(pq.read_table(path)), path, **{"compression": "zstd"} | options)

    def rehash(manifest: Any) -> None:
        manifest["environment"]["sidecar_sha256"][shard.sidecar] = hash_file(path)

    edit_manifest(folder, rehash)
    return path


def commands(folder: Path, tmp_path: Path) -> Iterator[tuple[object, ...]]:
    """All that read sidecars."""
    yield "shards", "stats", folder
    yield "shards", "show", folder, "--document", 0
    yield "shards", "show", folder, "--doc-hash", NEVER
    yield "shards", "show", folder, "--url", "https://example.org/never"
    yield "shards", "trace", folder, "--config", "tiny", "data.max_seq_length=16", "--step", 1
    yield "shards", "remove", folder, "--doc-hash", NEVER
    yield "shards", "remove", folder, "--url", "https://example.org/never"
    yield "shards", "export", folder, tmp_path / "exported"


def replace(name: str, make: Callable[[pa.Table], Any]) -> Edit:
    """An edit of one column."""
    place = SIDECAR_SCHEMA.names.index(name)
    return lambda table: table.set_column(place, name, make(table))


def numbers(name: str, change: Callable[[Any], Any]) -> Edit:
    """An edit of a column of numbers, as an array of them."""
    return replace(name, lambda t: pa.array(change(t[name].to_numpy().copy()), pa.uint64()))


def put(place: int, value: int) -> Callable[[Any], Any]:
    """A change of one number."""

    def change(values: Any) -> Any:
        values[place] = value
        return values

    return change


SHAPES: dict[str, tuple[Edit, str]] = {
    "other columns": (lambda t: pa.table({"x": [1]}), "its column start is missing"),
    "no hash": (lambda t: t.drop_columns(["doc_hash"]), "its column doc_hash is missing"),
    "no url": (lambda t: t.drop_columns(["url"]), "its column url is missing"),
    "start as text": (
        replace("start", lambda t: pa.array(["a"] * len(t))),
        "its column start holds string; expected uint64",
    ),
    "signed sizes": (
        replace("num_tokens", lambda t: t["num_tokens"].cast(pa.int64())),
        "its column num_tokens holds int64; expected uint64",
    ),
    "hashes of 32 bytes": (
        replace("doc_hash", lambda t: pa.array([bytes(32)] * len(t), pa.binary(32))),
        r"its column doc_hash holds fixed_size_binary\[32\]; expected fixed_size_binary\[16\]",
    ),
    "hashes of any size": (
        replace("doc_hash", lambda t: t["doc_hash"].cast(pa.binary())),
        "its column doc_hash holds binary; expected fixed_size_binary",
    ),
    "nested url": (
        replace("url", lambda t: pa.array([{"a": "b"}] * len(t))),
        "its column url holds struct<a: string>; expected string",
    ),
    "no rows": (lambda t: t.slice(0, 0), r"has 0 documents; expected [0-9]+ of"),
    "a row less": (lambda t: t.slice(1), "documents; expected"),
    "a row more": (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "documents; expected"),
    **{
        f"{name} null": (
            replace(name, lambda t, n=name: pa.array([None] * len(t), t[n].type)),  # type: ignore[misc]
            f"its column {name} has [0-9]+ nulls; expected none",
        )
        for name in ("start", "num_tokens", "source_file", "source_row", "doc_hash")
    },
}
PLACES: dict[str, tuple[Edit, str]] = {
    "a size of 2^64": (numbers("num_tokens", put(3, 2**64 - 1)), "its column num_tokens has 18,4"),
    "a size of 2^63": (numbers("num_tokens", put(0, 2**63)), "its column num_tokens has 9,22"),
    "a size more": (
        numbers("num_tokens", lambda v: v + 1),
        "not back to back|more than the sha|exp",
    ),
    "no sizes": (numbers("num_tokens", lambda v: v * 0), "num_tokens has a 0; expected at least 1"),
    "an empty document": (numbers("num_tokens", put(5, 0)), "num_tokens has a 0; expected at le"),
}
STARTS: dict[str, tuple[Edit, str]] = {
    "starts past the end": (numbers("start", put(2, 2**63)), "its column start has 9,22"),
    "starts descend": (numbers("start", lambda v: v[::-1]), "not back to back"),
    "starts shifted": (numbers("start", lambda v: v + 1), "not back to back|its column start has"),
}


@pytest.mark.parametrize("case", [*SHAPES, *PLACES, *STARTS])
def test_a_sidecar_of_another_shape_is_one_line_in_every_command(
    shards_copy: Path, tmp_path: Path, case: str
) -> None:
    edit, message = (SHAPES | PLACES | STARTS)[case]
    path = edit_sidecar(shards_copy, edit)
    code, said, _ = velocity("shards", "verify", shards_copy)
    assert code == 1
    assert sum(line.startswith(f"{path}: ") for line in said.splitlines()) == 1
    with pytest.raises(ValueError, match=message) as caught:
        list(read_rows(shards_copy, read_manifest(shards_copy).shards[0], SIDECAR_SCHEMA.names))
    assert str(caught.value).startswith(f"{path}: ")
    for command in commands(shards_copy, tmp_path):
        code, _, errors = velocity(*command)
        if code == 0 and case not in SHAPES:
            continue  # It reads no column that is wrong.
        assert code == 1, command
        assert errors.startswith(f"velocity: {path}: "), errors
        assert errors.count("\n") == 1
    assert (tmp_path / "exported.bin").exists() == (case in STARTS)


@pytest.mark.parametrize("column", ["start", "num_tokens", "source_file", "doc_hash"])
def test_nulls_that_the_footer_does_not_tell_of_are_found(shards_copy: Path, column: str) -> None:
    edit_sidecar(shards_copy, SHAPES[f"{column} null"][0], write_statistics=False)
    shard = read_manifest(shards_copy).shards[0]
    with pytest.raises(ValueError, match=f"its column {column} has nulls; expected none"):
        list(read_rows(shards_copy, shard, [column]))


def test_a_file_that_is_no_parquet_is_one_line(shards_copy: Path, tmp_path: Path) -> None:
    path = shards_copy / read_manifest(shards_copy).shards[0].sidecar
    whole = path.read_bytes()
    # The end of the footer's length and its mark; then only what its pages hold is damaged.
    for content in (b"", b"no parquet", whole[:-1], whole[:100] + bytes(200) + whole[300:]):
        path.write_bytes(content)
        for command in commands(shards_copy, tmp_path):
            code, _, errors = velocity(*command)
            if code:
                assert errors.startswith(f"velocity: {path}: "), errors
                assert errors.count("\n") == 1
    path.unlink()
    for command in commands(shards_copy, tmp_path):
        code, _, errors = velocity(*command)
        assert code == 1
        assert f"{path}: is missing; see what else is damaged with: velocity shards" in errors


@pytest.mark.parametrize("column", ["url", "source_file"])
def test_a_text_that_many_rows_share_is_not_decoded_for_each(
    shards_copy: Path, tmp_path: Path, column: str
) -> None:
    """40 MB of text, stored once and in few bytes: 1.9 GB for all rows."""

    def share(table: pa.Table) -> pa.Table:
        text = pa.array(["x" * (40 << 20)])
        indices = pa.array([0] * len(table), pa.int32())
        place = SIDECAR_SCHEMA.names.index(column)
        return table.set_column(place, column, pa.DictionaryArray.from_arrays(indices, text))

    path = edit_sidecar(shards_copy, share, store_schema=False)
    assert path.stat().st_size < 20_000
    started = time.process_time()
    # One that knows what is taken from now on, and not what earlier tests took.
    whole, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(ValueError, match=f"its column {column} decodes to .* bytes in .* rows"):
            list(read_rows(shards_copy, read_manifest(shards_copy).shards[0], SIDECAR_SCHEMA.names))
    finally:
        pa.set_memory_pool(whole)
    assert 1 << 20 < pool.max_memory() < 500 << 20
    assert time.process_time() - started < 10
    assert velocity("shards", "show", shards_copy, "--document", 0)[0] == 1


def test_a_footer_that_counts_more_rows_than_there_are_is_refused(shards_copy: Path) -> None:
    def lie(manifest: Any) -> None:
        shard, totals = manifest["content"]["shards"][0], manifest["totals"]["train"]
        totals["documents"] += shard["num_tokens"] - shard["num_documents"]
        shard["num_documents"] = shard["num_tokens"]

    edit_manifest(shards_copy, lie)
    code, said, _ = velocity("shards", "verify", shards_copy)
    assert code == 1
    assert "documents; expected" in said


def test_texts_encoded_by_what_they_share_with_the_one_before_are_refused(
    shards_copy: Path,
) -> None:
    edit_sidecar(
        shards_copy,
        lambda t: t,
        use_dictionary=False,
        column_encoding={"source_file": "DELTA_BYTE_ARRAY"},
    )
    with pytest.raises(ValueError, match="column source_file is encoded as DELTA_BYTE_ARRAY"):
        list(read_rows(shards_copy, read_manifest(shards_copy).shards[0], ["source_file"]))


@pytest.mark.parametrize("statistics", [True, False])
def test_rows_are_found_by_number_and_place_in_any_row_groups(
    shards_copy: Path, statistics: bool
) -> None:
    path = edit_sidecar(shards_copy, lambda t: t, row_group_size=7, write_statistics=statistics)
    shard = read_manifest(shards_copy).shards[0]
    table = pq.read_table(path)
    rows = np.array([0, 6, 7, 20, shard.num_documents - 1])
    assert take_rows(shards_copy, shard, rows).equals(table.take(pa.array(rows)))
    assert take_rows(shards_copy, shard, rows[:0]).equals(table.slice(0, 0))
    place = int(table["start"][20].as_py())
    found = find_groups(shards_copy, shard, place, place + 1)
    assert 2 in found
    assert found == [2] or not statistics
    assert pa.Table.from_batches(read_rows(shards_copy, shard, table.schema.names)).equals(table)


def put_checksums(checksums: bytes, table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({b"crc32_per_mib": checksums})


def test_damage_in_a_bin_is_told_though_its_checksums_are_lost(shards_copy: Path) -> None:
    for checksums in (b"", b"xyz", b"0" * 4000):
        edit_sidecar(shards_copy, partial(put_checksums, checksums))
        path = shards_copy / read_manifest(shards_copy).shards[0].name
        path.write_bytes(os.urandom(path.stat().st_size))
        code, said, _ = velocity("shards", "verify", shards_copy)
        assert code == 1
        assert "train-00000.bin: its sha256 is not the manifest's; damaged (the sidecar has" in said
