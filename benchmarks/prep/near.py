"""Near copies found in text, beside datatrove's MinHash: the rate, and what each finds.

Both get the same documents, a part of which are changed copies of others, and say which belong
together, each with its usual settings: shingles of 5 words; ours 16 bands of 6 minima and a
comparison, datatrove's 14 buckets of 8. What is true is a plain count: all pairs that share a
shingle, with words as \\w+ finds them.

    recall      of the pairs of similarity 0.87 and more, those in one cluster
    precision   of the pairs in one cluster, those of similarity 0.7 and more, or connected by such
"""

import argparse
import random
import re
import struct
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.measure import (
    OURS,
    Engine,
    Json,
    Measured,
    make_parser,
    print_result,
    run_script,
    say,
    take_turns,
)
from benchmarks.prep.texts import COLUMN, add_text_options, read_batches
from prep.python_docs import write_python_docs
from prep.sources.local import find_files
from shards.near.clusters import ClusterFinder
from shards.near.forest import Forest
from shards.near.signatures import NearSettings, sign_texts

PACKAGES = ("numpy", "pyarrow", "datatrove", "spacy")
BATCH = 1000
# Of each text, the chance that it gets a copy, and the words that a copy has changed.
COPIED = 0.25
CHANGED = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
NEAR, LOOSE = 0.87, 0.7
# Shingles in more documents than this are phrases of the source; they tell nothing of copies.
MAX_SHARING = 100


def main() -> None:
    """Measure, compare with the plain count, print the line."""
    parser = make_parser("Near copies, beside datatrove's MinHash.")
    add_text_options(parser, megabytes=4.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-near-") as name:
        texts = add_changed_copies(read_texts(Path(name), options))
        num_bytes = sum(len(text.encode()) for text in texts)
        say(f"{len(texts):,} documents, {num_bytes / 1e6:.1f} MB of text")
        engines = [
            Engine(OURS, (), lambda: start_velocity(texts, Path(name))),
            Engine("datatrove", ("datatrove", "spacy"), lambda: start_datatrove(texts, Path(name))),
        ]
        found: list[Mapping[str, list[int]]] = []
        results = take_turns(engines, options, found.append)
        checks = judge(texts, found[-1])
    work = {"documents": len(texts), "text_bytes": num_bytes}
    print_result("prep.near", options, work, results, checks, PACKAGES)


def read_texts(scratch: Path, options: argparse.Namespace) -> Iterator[str]:
    """About so many megabytes of the input's texts."""
    paths = find_files([str(entry) for entry in options.input or ()])[0]
    if not paths:
        paths = [scratch / "python-docs.jsonl"]
        write_python_docs(paths[0])
    left = options.megabytes * 1e6
    for texts in read_batches(paths, options.text_column if options.input else COLUMN):
        for text in texts:
            left -= len(text.encode())
            yield text
            if left < 0:
                return


def add_changed_copies(texts: Iterator[str]) -> list[str]:
    """The texts, and copies of some with changed words, in a random order."""
    generator = random.Random(0)
    found = []
    for text in texts:
        found.append(text)
        if generator.random() < COPIED:
            share, words = generator.choice(CHANGED), text.split(" ")
            found.append(" ".join("changed" if generator.random() < share else w for w in words))
    generator.shuffle(found)
    return found


def start_velocity(texts: Sequence[str], scratch: Path) -> Callable[[], Measured]:
    """Signatures and clusters, in batches as prep has them."""
    arrays = [
        pa.array(texts[start : start + BATCH], pa.large_string())
        for start in range(0, len(texts), BATCH)
    ]
    num_bytes = sum(len(text.encode()) for text in texts)

    def measure() -> Measured:
        settings = NearSettings()
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            started = time.perf_counter()
            with ClusterFinder(Path(folder), len(texts), settings) as finder:
                for array in arrays:
                    finder.add(sign_texts(array, settings))
            signed = time.perf_counter() - started
            kept = finder.find().find_kept(np.arange(len(texts)))
            seconds = time.perf_counter() - started
        return Measured(describe_rate(num_bytes, signed, seconds), kept.tolist())

    return measure


def start_datatrove(texts: Sequence[str], scratch: Path) -> Callable[[], Measured]:
    """Its three steps up to the clusters, one after another in this process."""
    import xxhash
    from datatrove.data import Document
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )
    from datatrove.utils.logging import logger

    logger.remove()
    documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
    num_bytes = sum(len(text.encode()) for text in texts)

    def hash_text(text: str) -> int:
        # What datatrove calls itself, but xxhash 4 takes no text.
        return int(xxhash.xxh64_intdigest(text.encode()))

    def measure() -> Measured:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            signatures, buckets, clusters = (f"{folder}/{name}" for name in ("s", "b", "c"))
            started = time.perf_counter()
            step = MinhashDedupSignature(signatures)
            step._hash_func = hash_text
            step.run(iter(documents), 0, 1)
            signed = time.perf_counter() - started
            for bucket in range(step.config.num_buckets):
                MinhashDedupBuckets(signatures, buckets).run(None, bucket, step.config.num_buckets)
            MinhashDedupCluster(buckets, clusters, save_cluster_id=True).run(None, 0, 1)
            seconds = time.perf_counter() - started
            labels = list(range(len(texts)))
            content = Path(clusters, "000000.clusters").read_bytes()
            for document, cluster in struct.iter_unpack("<II", content):
                labels[document] = -1 - cluster
        return Measured(describe_rate(num_bytes, signed, seconds), labels)

    return measure


def describe_rate(num_bytes: int, signed: float, seconds: float) -> dict[str, float]:
    """Megabytes of text a second, up to the signatures and up to the clusters."""
    return {
        "signatures_megabytes_per_second": num_bytes / 1e6 / signed,
        "megabytes_per_second": num_bytes / 1e6 / seconds,
    }


def judge(texts: Sequence[str], labels: Mapping[str, list[int]]) -> Json:
    """Recall and precision of each engine's clusters."""
    similar = dict(count_pairs(texts))
    near = [pair for pair, similarity in similar.items() if similarity >= NEAR]
    forest = Forest(len(texts))
    loose = np.array([pair for pair, j in similar.items() if j >= LOOSE], np.int64).reshape(-1, 2)
    forest.join(loose[:, 0], loose[:, 1])
    roots = forest.find_roots(np.arange(len(texts))).tolist()
    checks: Json = {"pairs_near": len(near)}
    for engine, found in labels.items():
        clusters = defaultdict(list)
        for document, label in enumerate(found):
            clusters[label].append(document)
        joined = [pair for members in clusters.values() for pair in combinations(members, 2)]
        right = sum(roots[one] == roots[other] for one, other in joined)
        recalled = sum(found[one] == found[other] for one, other in near)
        checks[engine] = {
            "recall": round(recalled / max(len(near), 1), 4),
            "precision": round(right / max(len(joined), 1), 4),
            "pairs_joined": len(joined),
        }
    return checks


def count_pairs(texts: Sequence[str]) -> Iterator[tuple[tuple[int, int], float]]:
    """The pairs of texts that share a shingle, and their similarity."""
    shingles, sharing = [], defaultdict(list)
    for number, text in enumerate(texts):
        words = re.findall(r"\w+", text.lower())
        here = {hash(tuple(words[at : at + 5])) for at in range(max(len(words) - 4, 1))}
        shingles.append(here)
        for value in here:
            sharing[value].append(number)
    pairs = {
        pair
        for members in sharing.values()
        if len(members) <= MAX_SHARING
        for pair in combinations(members, 2)
    }
    for one, other in pairs:
        shared = len(shingles[one] & shingles[other])
        yield (one, other), shared / (len(shingles[one]) + len(shingles[other]) - shared)


if __name__ == "__main__":
    run_script(main)
