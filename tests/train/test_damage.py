"""Damaged shards end a run in one line, before they are trained on."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from shards.format import read_manifest
from shards.reader import open_shards
from shards.sidecar import BLOCK_BYTES
from tests.runs import make_overrides, read_metrics, run_small
from tests.servers.forked import Forked
from tests.texts import make_texts, prepare_quietly, write_parquet


@pytest.fixture(scope="module")
def finished_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of train, the first one larger than a MiB, and one of validation."""
    folder = tmp_path_factory.mktemp("set")
    source = write_parquet(folder / "source.parquet", make_texts(9000))
    prepare_quietly(folder / "shards", source, shard_tokens=540_000, validation_fraction="0.1")
    sizes = [shard.num_tokens for shard in read_manifest(folder / "shards").split("train")]
    assert len(sizes) > 1
    assert sizes[0] > BLOCK_BYTES // 2
    return folder / "shards"


@pytest.fixture
def shards_copy(finished_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_set, tmp_path / "shards"))


def flip_bit(shards: Path, name: str, place: int) -> None:
    """Change a token into one that the tokenizer may have too."""
    tokens = np.memmap(shards / name, np.uint16, mode="r+")
    tokens[place] ^= 1
    tokens.flush()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_flipped_bit_ends_the_run_when_its_block_is_first_read(
    shards_copy: Path, tmp_path: Path, split: str
) -> None:
    shards = read_manifest(shards_copy).split(split)
    for shard in shards:  # In each of them, as a short run does not read all.
        flip_bit(shards_copy, shard.name, shard.num_tokens // 2)
    with pytest.raises(ValueError, match=rf"{split}-\d+\.bin: damaged in tokens [\d,]+ to [\d,]+"):
        run_small(shards_copy, tmp_path)
    run_small(shards_copy, tmp_path / "unchecked", data__verify="off")


def test_with_open_a_run_reads_all_shards_before_its_first_step(
    shards_copy: Path, tmp_path: Path
) -> None:
    run_small(shards_copy, tmp_path / "whole", data__verify="open")
    last = read_manifest(shards_copy).shards[-1]
    flip_bit(shards_copy, last.name, last.num_tokens - 1)
    with pytest.raises(
        ValueError, match=rf"{last.name}: its sha256 is not the manifest's; damaged"
    ):
        run_small(shards_copy, tmp_path / "run", data__verify="open")
    assert not list((tmp_path / "run").rglob("metrics.jsonl"))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_id_outside_the_vocabulary_names_its_shard_even_unchecked(
    shards_copy: Path, tmp_path: Path, split: str
) -> None:
    for shard in read_manifest(shards_copy).split(split):
        tokens = np.fromfile(shards_copy / shard.name, np.uint16)
        tokens[::10] = 60_000
        tokens.tofile(shards_copy / shard.name)
    with pytest.raises(ValueError, match=rf"{split}-\d+\.bin: holds the id 60000 as token [\d,]+;"):
        run_small(shards_copy, tmp_path, data__verify="off")


def test_checking_changes_no_loss(finished_set: Path, tmp_path: Path) -> None:
    losses = []
    for verify in ("open", "first-read", "off"):
        run_small(finished_set, tmp_path / verify, data__verify=verify)
        losses.append(read_metrics(tmp_path / verify))
    assert losses[0] == losses[1] == losses[2]


def test_only_the_blocks_that_a_window_touches_are_checked(shards_copy: Path) -> None:
    """A window across two shards, with damage to its left, right and, later, inside it."""
    first = read_manifest(shards_copy).split("train")[0]
    block = BLOCK_BYTES // 2
    boundary = first.num_tokens
    flip_bit(shards_copy, first.name, block - 1)
    stream = open_shards(shards_copy).stream("train", checks_first_reads=True)
    plain = open_shards(shards_copy).stream("train")
    assert (stream.read(block, 9) == plain.read(block, 9)).all()
    assert (stream.read(boundary - 3, 9) == plain.read(boundary - 3, 9)).all()
    with pytest.raises(ValueError, match=f"{first.name}: damaged in tokens 0 to {block:,}: "):
        stream.read(block - 3, 9)
    # What was read once is not compared again, unless the file was written to.
    before = (shards_copy / first.name).stat()
    flip_bit(shards_copy, first.name, block + 1)
    os.utime(shards_copy / first.name, ns=(before.st_atime_ns, before.st_mtime_ns))
    stream.read(block, 9)
    os.utime(shards_copy / first.name)
    with pytest.raises(ValueError, match=f"{first.name}: damaged in tokens {block:,} to "):
        stream.read(block, 9)


@pytest.mark.parametrize("verify", ["first-read", "off"])
def test_a_shard_that_is_cut_short_under_a_run_ends_it_in_a_line(
    shards_copy: Path, tmp_path: Path, verify: str
) -> None:
    """Not by SIGBUS, as it would if it were mapped."""
    overrides = make_overrides(
        shards_copy, tmp_path, training__num_training_steps=10**6, data__verify=verify
    )
    process = Forked(["train", *overrides])
    log = tmp_path / "logs" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    shard = read_manifest(shards_copy).split("train")[0]
    os.truncate(shards_copy / shard.name, 1000)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 78
    [line] = [line for line in errors.splitlines() if line.startswith("velocity: ")]
    assert f"{shards_copy / shard.name} has 1,000 bytes; expected {shard.num_bytes:,} by" in line
    assert "Traceback" not in errors


def test_a_missing_or_stripped_sidecar_is_told_at_the_start(
    shards_copy: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    shard = read_manifest(shards_copy).split("train")[0]
    table = pq.read_table(shards_copy / shard.sidecar)
    pq.write_table(table.replace_schema_metadata({}), shards_copy / shard.sidecar)
    with pytest.raises(ValueError, match=rf"{shard.sidecar}: its checksums .* data.verify=off"):
        run_small(shards_copy, tmp_path)
    (shards_copy / shard.sidecar).unlink()
    with pytest.raises(ValueError, match=rf"{shard.sidecar}: is missing, .* data.verify=off"):
        run_small(shards_copy, tmp_path)
    run_small(shards_copy, tmp_path, data__verify="off")
