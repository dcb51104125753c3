"""Texts -> the 64-bit hashes of their shingles: runs of a few words each.

A word is a run of letters and digits, in lower case as far as ASCII, Latin-1 (U+00C0-00DE), Greek
(U+0391-03A9) and Cyrillic (U+0400-042F) go. What stands between words is white space, ASCII
punctuation, and that of U+0080-00BF, U+2000-207F, U+3000-303F, U+FF00-FF0F and U+FF1A-FF20. A
character of U+3040-9FFF or beyond U+FFFF is a word of its own, as such scripts have no spaces.

The rules are about bytes of UTF-8, and all arithmetic is of whole numbers modulo 2^64, so that the
hashes are the same on every machine and with every version of every library: which documents a set
has depends on them (tests/shards/test_near.py freezes some). The hash of a word b_0 b_1 ... is
mix(sum b_i B^i), that of a shingle w_0 w_1 ... w_n-1 is mix(w_0 M^(n-1) + ... + w_n-1).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from shards.format import Int64

Bytes = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]

# Bytes of text looked at in one go: the arrays made of them stay in a core's cache. Also the
# longest piece of a text that is cut nowhere but at its words: another value is another hash.
PIECE_BYTES = 1 << 17
# Capitals of two bytes: the first byte, the second from one to another; what is added to both.
CAPITALS = (
    (0xC3, 0x80, 0x96, 0, 0x20),
    (0xC3, 0x98, 0x9E, 0, 0x20),
    (0xCE, 0x91, 0x9F, 0, 0x20),
    (0xCE, 0xA0, 0xA1, 1, -0x20),
    (0xCE, 0xA3, 0xA9, 1, -0x20),
    (0xD0, 0x80, 0x8F, 1, 0x10),
    (0xD0, 0x90, 0x9F, 0, 0x20),
    (0xD0, 0xA0, 0xAF, 1, -0x20),
)
WORD_BASE = 0x9E3779B97F4A7C15
SHINGLE_BASE = 0xD1342543DE82EF95
# Of splitmix64 (Steele, Lea, Flood 2014).
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def make_letters() -> Bytes:
    """What each byte is in a word, A-Z as a-z; 0 for what stands between words."""
    letters = np.arange(256, dtype=np.uint8)
    letters[ord("A") : ord("Z") + 1] += 32
    is_between = [byte < 0x80 and not bytes([byte]).isalnum() for byte in range(256)]
    letters[np.array(is_between)] = 0
    return letters


def make_powers(base: int, count: int) -> Hashes:
    """base^0, base^1, ... modulo 2^64."""
    powers = np.ones(count, np.uint64)
    powers[1:] = np.uint64(base)
    return np.cumprod(powers, dtype=np.uint64)


LETTERS = make_letters()
POWERS = make_powers(WORD_BASE, PIECE_BYTES)
INVERSE_POWERS = make_powers(pow(WORD_BASE, -1, 1 << 64), PIECE_BYTES)


def mix(values: Hashes) -> Hashes:
    """Spread values over all 64 bits: splitmix64's finalizer."""
    values = (values ^ (values >> SHIFTS[0])) * MIX[0]
    values = (values ^ (values >> SHIFTS[1])) * MIX[1]
    return values ^ (values >> SHIFTS[2])


def hash_shingles(text: Bytes, offsets: Int64, num_words: int) -> tuple[Hashes, Int64]:
    """The hashes of the texts' shingles back to back, and how many each text has.

    Text i is text[offsets[i]:offsets[i + 1]]. One of fewer than `num_words` words has a single
    shingle, all of them; one without words has none. Shingles that repeat are not removed.
    """
    return join_words(*hash_words(text, offsets), num_words)


def join_words(words: Hashes, counts: Int64, num_words: int) -> tuple[Hashes, Int64]:
    """The same for texts of which the words' hashes are known, `counts` of each."""
    words, counts = pad_short(words, counts, num_words)
    size = max(len(words) - num_words + 1, 0)
    shingles = words[:size].copy()
    for place in range(1, num_words):
        shingles *= np.uint64(SHINGLE_BASE)
        shingles += words[place : place + size]
    # Those that begin in the last words of a text would reach into the next one.
    is_within = np.ones(len(words), np.bool_)
    ends = np.cumsum(counts)[counts > 0]
    for place in range(1, num_words):
        is_within[ends - place] = False
    return mix(shingles[is_within[:size]]), np.maximum(counts - num_words + 1, 0)


def pad_short(words: Hashes, counts: Int64, num_words: int) -> tuple[Hashes, Int64]:
    """The same, with zeros after the words of each text that has some, but too few."""
    is_short = (counts > 0) & (counts < num_words)
    if not is_short.any():
        return words, counts
    padded_counts = np.where(is_short, num_words, counts)
    shifts = np.cumsum(padded_counts) - padded_counts - (np.cumsum(counts) - counts)
    padded = np.zeros(int(padded_counts.sum()), np.uint64)
    padded[np.arange(len(words)) + np.repeat(shifts, counts)] = words
    return padded, padded_counts


def hash_words(text: Bytes, offsets: Int64) -> tuple[Hashes, Int64]:
    """The hashes of the texts' words back to back, and how many each text has."""
    counts = np.zeros(len(offsets) - 1, np.int64)
    found = [np.empty(0, np.uint64)]
    for first, bounds in group_pieces(text, offsets):
        block, bounds = text[bounds[0] : bounds[-1]], bounds - bounds[0]
        letters, starts = find_words(block, bounds[:-1])
        counts[first : first + len(bounds) - 1] += np.diff(np.searchsorted(starts, bounds))
        if len(starts):
            # What is between words is 0, so a word's sum may go on to where the next one starts.
            values = letters * POWERS[: len(block)]
            found.append(mix(np.add.reduceat(values, starts) * INVERSE_POWERS[starts]))
    return np.concatenate(found), counts


def group_pieces(text: Bytes, offsets: Int64) -> Iterator[tuple[int, Int64]]:
    """Blocks of at most PIECE_BYTES: the first text in each, and the bounds of those in it.

    A text that is longer is several blocks, cut after white space where it has some.
    """
    first, num_texts = 0, len(offsets) - 1
    while first < num_texts:
        start = int(offsets[first])
        stop = int(np.searchsorted(offsets, start + PIECE_BYTES, side="right")) - 1
        if stop > first:
            yield first, offsets[first : stop + 1]
            first = stop
            continue
        end = int(offsets[first + 1])
        while start < end:
            cut = find_cut(text, start, end)
            yield first, np.array([start, cut])
            start = cut
        first += 1


def find_cut(text: Bytes, start: int, end: int) -> int:
    """Where a piece that begins at `start` ends: by the bytes of its own text alone."""
    if end - start <= PIECE_BYTES:
        return end
    window = text[start : start + PIECE_BYTES]
    spaces = np.flatnonzero((window == ord(" ")) | (window == ord("\n")))
    if len(spaces):
        return start + int(spaces[-1]) + 1
    cut = start + PIECE_BYTES
    while cut > start + 1 and text[cut] & 0xC0 == 0x80:  # Inside a character.
        cut -= 1
    return cut


def find_words(block: Bytes, texts: Int64) -> tuple[Bytes, Int64]:
    """The letters of words, 0 between them, and where words start; `texts` is where texts do."""
    letters = LETTERS[block]
    breaks = np.zeros(len(block) + 1, np.bool_)  # A word never goes on across these.
    breaks[texts] = True
    leads = np.flatnonzero(block >= 0xC2)
    if len(leads):
        mark_characters(block, leads, letters, breaks)
    is_word = letters != 0
    breaks[1:-1] |= ~is_word[:-1]
    return letters, np.flatnonzero(is_word & breaks[:-1])


def mark_characters(
    block: Bytes, leads: Int64, letters: Bytes, breaks: npt.NDArray[np.bool_]
) -> None:
    """Mark what is punctuation, or a word of its own, of the characters that begin at `leads`.

    Capitals among them become small.
    """
    last = len(block) - 1
    lead, second, third = (block[np.minimum(leads + k, last)] for k in range(3))
    is_wide = (lead == 0xE2) & ((second == 0x80) | (second == 0x81))
    is_wide |= (lead == 0xE3) & (second == 0x80)
    is_wide |= (lead == 0xEF) & (second == 0xBC) & ((third < 0x90) | ((third - 0x9A) < 7))
    for is_mark, size in ((lead == 0xC2, 2), (is_wide, 3)):
        places = leads[is_mark]
        for place in range(size):
            letters[np.minimum(places + place, last)] = 0
    for first, low, high, *shifts in CAPITALS:
        places = leads[(lead == first) & (second >= low) & (second <= high)]
        for place, shift in enumerate(shifts):
            letters[places + place] += np.uint8(shift % 256)
    is_alone = (lead >= 0xE3) & (lead <= 0xE9) | (lead >= 0xF0)
    is_alone &= ~is_wide
    places, sizes = leads[is_alone], np.where(lead[is_alone] < 0xF0, 3, 4)
    breaks[places] = True
    breaks[np.minimum(places + sizes, last + 1)] = True
