"""Near copies: what their shingles and signatures are, exactly, and which clusters they form."""

import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from shards.near.clusters import ENTRY, ClusterFinder, compare_texts
from shards.near.forest import Forest
from shards.near.shingles import PIECE_BYTES, SHINGLE_BASE, WORD_BASE, hash_shingles
from shards.near.signatures import NearSettings, sign_texts
from tests.planted import measure_pairs, plant_copies

ALL = (1 << 64) - 1


def mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & ALL
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & ALL
    return value ^ (value >> 31)


def split_words(text: str) -> list[bytes]:
    """Words as the docstring of shards/near/shingles.py defines them, one character at a time."""
    words, word = [], b""
    for character in text:
        code = ord(character)
        is_alone = 0x3040 <= code < 0xA000 or code > 0xFFFF
        is_between = (
            (code < 0x80 and not character.isalnum())
            or 0x80 <= code < 0xC0
            or 0x2000 <= code < 0x2080
            or 0x3000 <= code < 0x3040
            or 0xFF00 <= code < 0xFF10
            or 0xFF1A <= code <= 0xFF20
        )
        if is_alone or is_between:
            words += [word, character.encode()] if is_alone else [word]
            word = b""
        else:
            is_known = code < 0x100 or 0x391 <= code < 0x3AA or 0x400 <= code < 0x430
            word += (character.lower() if is_known else character).encode()
    return [found for found in [*words, word] if found]


def hash_word(word: bytes) -> int:
    powers = (byte * pow(WORD_BASE, place, 1 << 64) for place, byte in enumerate(word))
    return mix(sum(powers) & ALL)


def shingle(text: str, num_words: int) -> list[int]:
    words = [hash_word(word) for word in split_words(text)]
    if words and len(words) < num_words:
        words += [0] * (num_words - len(words))
    found = []
    for at in range(len(words) - num_words + 1):
        value = 0
        for word in words[at : at + num_words]:
            value = (value * SHINGLE_BASE + word) & ALL
        found.append(mix(value))
    return found


def sign(text: str, settings: NearSettings) -> tuple[list[int], list[int]]:
    """The keys of bands and the last bytes of minima, in Python's whole numbers."""
    hashes = shingle(text, settings.shingle)
    if not hashes:
        return [0] * settings.bands, [0] * settings.places
    counters = (0x9E3779B97F4A7C15 * k & ALL for k in range(1, settings.places + 1))
    multipliers = [mix(counter) >> 32 | 1 for counter in counters]
    minima = [
        min(((value >> 32) * multiplier + value) % (1 << 32) for value in hashes)
        for multiplier in multipliers
    ]
    keys = []
    for band in range(settings.bands):
        rows = minima[band * settings.rows :][: settings.rows]
        powers = (m * pow(0xA0761D6478BD642F, k, 1 << 64) for k, m in enumerate(rows, 1))
        keys.append(max(mix((sum(powers) + band) & ALL), 1))
    return keys, [minimum % 256 for minimum in minima]


def find_shingles(texts: list[str], num_words: int) -> list[list[int]]:
    array = pa.array(["first", *texts], pa.large_string())[1:]
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset :][: len(texts) + 1]
    hashes, counts = hash_shingles(np.frombuffer(array.buffers()[2], np.uint8), offsets, num_words)
    bounds = [0, *np.cumsum(counts).tolist()]
    return [hashes[start:stop].tolist() for start, stop in pairwise(bounds)]


@pytest.mark.parametrize("num_words", [1, 2, 5])
def test_shingles_are_those_of_the_definition(num_words: int) -> None:
    generator = random.Random(num_words)
    characters = "ab Zz09 ,.éÉß“”—北京、🙂\n\u00a0\uff1aжи\u3042\uff0c\uff41\uff11"
    characters += "\u00d7\u00f7\u0130\u0391\u03a9\u03aa\u0400\u0420\u042f"
    texts = ["".join(generator.choices(characters, k=generator.randint(0, 40))) for _ in range(500)]
    assert find_shingles(texts, num_words) == [shingle(text, num_words) for text in texts]


@pytest.mark.parametrize("gap", ["", " ", "北", "é"])
def test_a_long_text_is_cut_at_words_alone(gap: str) -> None:
    """Its hashes are those of its words; a word is never longer than a piece."""
    word = "word é 北京 " * 50 + gap
    text = word * (2 * PIECE_BYTES // len(word.encode()) + 3)
    assert len(text.encode()) > 2 * PIECE_BYTES
    assert find_shingles(["a b", text, "c"], 3) == [shingle(t, 3) for t in ("a b", text, "c")]
    endless = ("é" * PIECE_BYTES)[: PIECE_BYTES - 1] + "x"
    alone, among = find_shingles([endless], 2), find_shingles(["a", endless, endless], 2)
    assert among[1:] == alone * 2
    assert len(alone[0]) == 1


def test_signatures_are_those_of_the_definition() -> None:
    texts = ["", "...", "one", "The same five words, THE", *plant_copies(8, seed=2)]
    for settings in (NearSettings(), NearSettings(shingle=2, bands=3, rows=4)):
        found = sign_texts(pa.array(texts, pa.large_string()), settings)
        expected = [sign(text, settings) for text in texts]
        assert found["keys"].tolist() == [keys for keys, _ in expected]
        assert found["low"].tolist() == [low for _, low in expected]


def test_signatures_never_change() -> None:
    """A set's documents depend on them: other numbers here would be another --dedup near."""
    text = "It was the best of times, it was the worst of times: naïve CAFÉ, Привет, 北京 🙂"
    found = sign_texts(pa.array([text], pa.large_string()), NearSettings(bands=2, rows=4))[0]
    assert found["keys"].tolist() == GOLDEN_KEYS
    assert found["low"].tolist() == GOLDEN_LOW


GOLDEN_KEYS = [5636441499414613030, 18085477331924714826]
GOLDEN_LOW = [242, 175, 203, 235, 16, 170, 116, 196]


def test_signatures_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*plant_copies(60), "", "x"]
    array = pa.array(texts, pa.large_string())
    whole = sign_texts(array, NearSettings())
    monkeypatch.setattr("shards.near.signatures.BATCH_BYTES", 3000)
    monkeypatch.setattr("shards.near.signatures.BLOCK_SHINGLES", 77)
    assert (sign_texts(array, NearSettings()) == whole).all()
    assert (sign_texts(array[5:20], NearSettings()) == whole[5:20]).all()


def find_kept(texts: list[str], folder: Path, settings: NearSettings | None = None) -> list[int]:
    settings = settings or NearSettings()
    folder.mkdir()
    signatures = sign_texts(pa.array(texts, pa.large_string()), settings)
    finder = ClusterFinder(folder, len(texts), settings)
    with finder:
        finder.add(signatures[: len(texts) // 3])
        finder.add(signatures[len(texts) // 3 :])
    kept: list[int] = finder.find().find_kept(np.arange(len(texts))).tolist()
    return kept


def test_recall_and_precision_against_a_plain_count_of_all_pairs(tmp_path: Path) -> None:
    """docs/duplicates.md states these numbers."""
    texts = plant_copies(350, seed=1)
    kept = find_kept(texts, tmp_path / "a")
    pairs = list(measure_pairs(texts))
    together = {(i, j) for i, j, _ in pairs if kept[i] == kept[j]}
    near = {(i, j) for i, j, similarity in pairs if similarity >= 0.8}
    clear = {(i, j) for i, j, similarity in pairs if similarity >= 0.87}
    # Clusters join what is near through a third text; such pairs are near in that sense.
    linked = Forest(len(texts))
    for i, j, similarity in pairs:
        if similarity >= 0.72:
            linked.join(np.array([i]), np.array([j]))
    roots = linked.find_roots(np.arange(len(texts)))
    assert len(near) > 200
    assert len(clear & together) / len(clear) >= 0.99
    assert len(near & together) / len(near) >= 0.95
    assert len(near & together) / len(together) >= 0.85
    far = [(i, j) for i, j in together if roots[i] != roots[j]]
    assert len(far) / len(together) <= 0.01
    # Texts that share no shingle are never together.
    sharing = {frozenset(pair[:2]) for pair in pairs}
    for text, first in enumerate(kept):
        assert text == first or frozenset((text, first)) in sharing or roots[text] == roots[first]


def test_the_order_of_texts_decides_only_which_is_the_first(tmp_path: Path) -> None:
    texts = plant_copies(200, seed=3)
    order = random.Random(0).sample(range(len(texts)), len(texts))
    one = find_kept(texts, tmp_path / "a", NearSettings(Fraction(9, 10)))
    other = find_kept(
        [texts[place] for place in order], tmp_path / "b", NearSettings(Fraction(9, 10))
    )
    clusters = [[order[place] for place in np.flatnonzero(np.equal(other, n))] for n in set(other)]
    expected = [np.flatnonzero(np.equal(one, n)).tolist() for n in set(one)]
    assert sorted(map(sorted, clusters)) == sorted(expected)


def test_copies_of_one_text_are_one_cluster_and_texts_without_words_are_none(
    tmp_path: Path,
) -> None:
    texts = ["", "...", "A b", "a, B!", "", "...", "a b c", "a b"]
    assert find_kept(texts, tmp_path / "a") == [0, 1, 2, 2, 4, 5, 6, 2]


def test_clusters_do_not_depend_on_how_much_is_sorted_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = plant_copies(150, seed=4)
    expected = find_kept(texts, tmp_path / "a")
    monkeypatch.setattr("shards.near.buckets.FILE_ENTRIES", 50)
    monkeypatch.setattr("shards.near.buckets.DEALT_ENTRIES", 99)
    monkeypatch.setattr("shards.near.clusters.BLOCK_TEXTS", 7)
    assert find_kept(texts, tmp_path / "b") == expected
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["low"]


def test_of_those_that_no_leader_is_near_the_first_leads_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(0)
    low = generator.integers(0, 2, (60, 8), np.uint8)
    entries = np.empty(60, ENTRY)
    entries["key"], entries["number"] = generator.integers(0, 3, 60), np.arange(60)
    for max_leaders in (64, 2):
        monkeypatch.setattr("shards.near.clusters.MAX_LEADERS", max_leaders)
        expected = set()
        for key in range(3):
            leaders: list[int] = []
            for number in np.flatnonzero(entries["key"] == key).tolist():
                agreeing = [int((low[number] == low[leader]).sum()) for leader in leaders]
                near = [leaders[n] for n, count in enumerate(agreeing) if count >= 7]
                expected.update((leader, number) for leader in near[:1])
                if not near and len(leaders) < max_leaders:
                    leaders.append(number)
        compared = compare_texts(entries, low, 7)
        found = [pair for pairs in compared for pair in zip(*pairs, strict=True)]
        assert len(found) == len(set(found))
        assert set(found) == expected


def test_groups_are_those_of_the_pairs_in_any_order() -> None:
    generator = random.Random(1)
    for _ in range(100):
        count = generator.randint(1, 40)
        pairs = [(generator.randrange(count), generator.randrange(count)) for _ in range(30)]
        expected = list(range(count))
        for one, other in pairs:
            low, high = sorted((expected[one], expected[other]))
            expected = [low if root == high else root for root in expected]
        forest = Forest(count)
        generator.shuffle(pairs)
        for part in (pairs[:11], pairs[11:]):
            one, other = np.array(part).T
            forest.join(one, other)
        assert forest.find_roots(np.arange(count)).tolist() == expected
