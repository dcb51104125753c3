"""`velocity shards index`: orders the tokens of a set, array by array.

An array is over one shard, or over documents of it that are at most ARRAY_TOKENS together, so that
memory does not grow with the set. Each is there whole or not at all; a second start makes those
that are missing or have been damaged since. index.json comes last.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np

from shards.disk.folders import make_folder
from shards.disk.layout import index_folder
from shards.disk.lock import lock_set
from shards.disk.memory import find_memory
from shards.disk.space import check_space
from shards.format import SPLITS, Manifest, Shard
from shards.index.array import (
    MAX_TOKENS,
    count_bytes,
    count_code_bytes,
    digest_array,
    estimate_memory,
    make_codes,
    order_suffixes,
    write_array,
)
from shards.index.contents import Arrays, Entry, clear_others, write_index
from shards.reader import Shards, TokenStream, open_shards
from shards.rows import read_rows
from shards.screen.lines import ReadProgress, Say, format_bytes, format_count, format_plural
from shards.sidecar import count_tokens

ARRAY_TOKENS = 1 << 26
# A core orders about as many tokens in a second, where text repeats as it does on the web.
TOKENS_PER_SECOND = 2_500_000
MAX_WORKERS = 256


@dataclass(frozen=True)
class Task:
    """An array to make, and where its tokens are in their split's stream."""

    entry: Entry
    start: int


def build_index(
    folder: Path, say: Say, workers: int = 1, array_tokens: int = ARRAY_TOKENS
) -> Manifest:
    """Make the index of a set, or what is missing of it; returns the set's manifest.

    Raises ValueError with one line if memory or disk would not do, or a shard is damaged.
    """
    if not 1 <= workers <= MAX_WORKERS:
        raise ValueError(f"--workers is {workers!s:.60}; expected 1 to {MAX_WORKERS}")
    if find_spec("pydivsufsort") is None:
        raise ValueError("an index needs pydivsufsort: pip install 'velocitylm[index]'")
    open_shards(folder)  # Refuses a folder without a set before a lock is made in it.
    with lock_set(folder):
        shards = open_shards(folder)
        tasks = [task for split in SPLITS for task in plan_arrays(shards, split, array_tokens)]
        make_folder(index_folder(folder))
        entries = [task.entry for task in tasks]
        there = digest_arrays(folder, entries)
        missing = [task for task in tasks if task.entry not in there]
        for line in check_needs(shards, tasks, missing, workers):
            say(line)
        make_arrays(shards, missing, workers)
        there |= digest_arrays(folder, [task.entry for task in missing])
        write_index(folder, shards.manifest, {entry: there[entry] for entry in entries})
        clear_others(folder, entries)
    return shards.manifest


def plan_arrays(shards: Shards, split: str, array_tokens: int) -> Iterator[Task]:
    """The arrays of a split."""
    start = 0
    for shard in shards.manifest.split(split):
        bounds = cut_shard(shards.folder, shard, array_tokens)
        for first, stop in pairwise(bounds):
            yield Task(Entry(shard, first, stop - first), start + first)
        start += shard.num_tokens


def cut_shard(folder: Path, shard: Shard, array_tokens: int) -> list[int]:
    """Where a shard's arrays begin, and its end: they hold whole documents."""
    if shard.num_tokens <= array_tokens:
        return [0, shard.num_tokens] if shard.num_tokens else [0]
    sizes = [count_tokens(rows) for rows in read_rows(folder, shard, ["start", "num_tokens"])]
    ends = np.cumsum(np.concatenate(sizes))
    bounds = [0]
    while bounds[-1] < shard.num_tokens:
        place = int(np.searchsorted(ends, bounds[-1] + array_tokens, side="right"))
        # A document that is longer has an array of its own.
        longer = int(np.searchsorted(ends, bounds[-1], side="right"))
        bounds.append(int(ends[max(place - 1, longer)]))
    return bounds


def digest_arrays(folder: Path, entries: list[Entry]) -> Arrays:
    """Those of these arrays that are there, whole."""
    progress = ReadProgress("tokens checked", sum(entry.num_tokens for entry in entries))
    found = {}
    for entry in entries:
        digests = digest_array(entry.path(folder), entry.num_tokens)
        if digests is not None:
            found[entry] = digests
        progress.add(entry.num_tokens)
    progress.finish()
    return found


def check_needs(
    shards: Shards, tasks: list[Task], missing: list[Task], workers: int
) -> Iterator[str]:
    """What the index will take, in words; ValueError if this machine does not have it."""
    manifest, folder = shards.manifest, shards.folder
    total = sum(task.entry.num_tokens for task in tasks)
    size = sum(count_bytes(task.entry.num_tokens) for task in tasks)
    yield (
        f"{folder}: {format_count(total)} tokens, {format_plural(len(tasks), 'array')} of "
        f"{format_bytes(size)}; {len(tasks) - len(missing):,} are there"
    )
    if not missing:
        return
    largest = sorted((task.entry.num_tokens for task in missing), reverse=True)
    if largest[0] > MAX_TOKENS:
        raise ValueError(
            f"{folder}: a document has {largest[0]:,} tokens; expected at most {MAX_TOKENS:,}"
        )
    estimate = partial(
        estimate_memory, vocab_size=manifest.vocab_size, token_bytes=manifest.token_bytes
    )
    needed = sum(map(estimate, largest[:workers]))
    memory = find_memory()
    if memory is not None and needed > memory[1]:
        advice = "use fewer --workers" if workers > 1 else "make it on a larger one"
        raise ValueError(
            f"about {format_bytes(needed)} of memory is needed, and {format_bytes(memory[1])} is "
            f"free on this machine; {advice}"
        )
    seconds = sum(largest) / TOKENS_PER_SECOND / min(workers, len(missing))
    space = sum(map(count_bytes, largest))
    yield check_space(
        folder,
        space,
        "make it on another disk",
        f"and {format_bytes(needed)} of memory; it takes about {max(seconds / 60, 0.1):.1f} "
        "minutes of a core that has nothing else to do",
    )


def make_arrays(shards: Shards, missing: list[Task], workers: int) -> None:
    """Make the arrays, `workers` at a time, the largest first."""
    streams = {split: shards.stream(split, checks_first_reads=True) for split in SPLITS}
    progress = ReadProgress("tokens", sum(task.entry.num_tokens for task in missing))
    # Threads, since the sort holds no lock of Python's; with one core's work each.
    pool = ThreadPoolExecutor(workers)
    try:
        make = partial(make_array, shards.folder, streams, shards.manifest.vocab_size)
        in_order = sorted(missing, key=lambda task: -task.entry.num_tokens)
        for done in as_completed([pool.submit(make, task) for task in in_order]):
            progress.add(done.result())
    finally:
        pool.shutdown(cancel_futures=True)
        progress.finish()
        for stream in streams.values():
            stream.close()


def make_array(folder: Path, streams: dict[str, TokenStream], vocab_size: int, task: Task) -> int:
    """Make one array; returns its number of tokens."""
    entry = task.entry
    # The ids are not kept: while they are ordered, memory is what counts.
    codes = make_codes(streams[entry.shard.split].read(task.start, entry.num_tokens), vocab_size)
    write_array(entry.path(folder), order_suffixes(codes, count_code_bytes(vocab_size)))
    return entry.num_tokens
