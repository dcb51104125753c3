"""`velocity prep --chat`, killed on the way: the same command again makes the same set."""

import os
import random
import signal
import time
from pathlib import Path

from shards.format import read_manifest
from shards.inspect.verify import verify_shards
from tests.chat.test_prep_chats import assistant, prep, user, write_lines
from tests.prep.test_prep import count_units, prep_command, wait_for_units
from tests.servers.forked import Forked
from tests.servers.kill_prep import find_children
from tests.texts import set_bytes
from tests.tiny import TOKENIZER_JSON

KILLS = 2


def test_killed_again_and_again_it_gives_the_same_chats(tmp_path: Path) -> None:
    """SIGKILL of the command, its workers and their templates, while units are made."""
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(TOKENIZER_JSON, encoding="utf-8")
    rows = [
        {"messages": [user(f"{i}+{i}?"), assistant(f"{2 * i}."), user("?"), assistant("." * i)]}
        for i in range(60)
    ]
    paths = [write_lines(tmp_path / f"{n}.jsonl", rows[n::2]) for n in range(2)]
    policy = {"unit_bytes": 2000, "validation_fraction": "0.1", "shard_tokens": 1024}
    reference = prep(tmp_path / "reference", paths, tokenizer, **policy)
    assert len(reference.shards) >= 8

    out = tmp_path / "killed"
    command = prep_command(out, "--chat", "--input", tmp_path / "*.jsonl", "--tokenizer", tokenizer)
    command += ["--pack-tokens", "256", "--workers", "2"]
    command += [f"--{key.replace('_', '-')}={value}" for key, value in policy.items()]
    generator = random.Random(2026)
    kills = 0
    while kills < KILLS:
        process = Forked(command)
        wait_for_units(process, out, count_units(out) + 1)
        time.sleep(generator.uniform(0, 0.02))
        templates = [each for one in find_children(process.pid) for each in find_children(one)]
        if process.poll() is not None:  # It was faster: most of it is to be done once more.
            (out / "manifest.json").unlink()
            for receipt in sorted((out / ".prep/units").iterdir())[1:]:
                receipt.unlink()
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wait_for_end(templates)  # They are in sessions of their own.
        kills += any((out / ".prep/tmp").iterdir())  # In a unit, and not between two.
    assert count_units(out) > 0

    prep(out, paths, tokenizer, **policy)
    assert read_manifest(out).dataset_id == reference.dataset_id
    assert set_bytes(out) == set_bytes(tmp_path / "reference")
    assert [fault for _, fault in verify_shards(out) if fault] == []
    assert list((out / ".prep/tmp").iterdir()) == []


def wait_for_end(processes: list[int]) -> None:
    """Return once none of these is left; an error if that takes too long."""
    deadline = time.monotonic() + 30
    while left := [each for each in processes if Path(f"/proc/{each}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
