"""How much memory training will take: what counts is how many different words the text has.

The library keeps every different word with its pairs. In English a gigabyte has few; in languages
without spaces nearly every clause is a word of its own, and memory is soon the limit.
"""

import math
from collections.abc import Iterable

from tokenizers import pre_tokenizers

# The peak of training on 10 MB to 70 MB of English, and on 5 MB and 10 MB of Chinese.
MEMORY_BYTES = 150_000_000
MEMORY_PER_WORD_BYTE = 120


def estimate_memory(sample: Iterable[str], splitter: pre_tokenizers.Split, train_bytes: int) -> int:
    """About the bytes of memory that it takes to train on as much text like the sample."""
    texts = [*sample]
    total = sum(len(text.encode("utf-8")) for text in texts)
    words: set[str] = set()
    read, counts = 0, [(0, 0)]
    for text in texts:
        new = {word for word, _ in splitter.pre_tokenize_str(text)} - words
        words |= new
        read += len(text.encode("utf-8"))
        counts.append((read, counts[-1][1] + sum(len(word.encode("utf-8")) for word in new)))
    half = next(count for count in counts if 2 * count[0] >= total)
    return MEMORY_BYTES + int(MEMORY_PER_WORD_BYTE * extrapolate(half, counts[-1], train_bytes))


def extrapolate(half: tuple[int, int], whole: tuple[int, int], size: int) -> float:
    """How many bytes of different words so much text has: a power of its size (Heaps' law).

    `half` and `whole`: the sizes of two samples, and the bytes of the different words in each.

    >>> extrapolate((1000, 100), (4000, 200), 16000)
    400.0
    """
    if half[0] >= whole[0]:
        return min(whole[1] * size / max(whole[0], 1), size)
    power = math.log(whole[1] / half[1]) / math.log(whole[0] / half[0])
    return min(whole[1] * float((size / whole[0]) ** min(power, 1.0)), size)
