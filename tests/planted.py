"""Documents with near copies planted among them, and how near each pair of them is, counted."""

import random
import re
from collections.abc import Iterator
from itertools import combinations

Shingles = frozenset[tuple[str, ...]]
# How a copy is changed, and by how much: a share of its words, or how many sentences move.
CHANGES = ("replace", "insert", "delete", "shuffle", "case", "frame", "cut")
SHARES = (0.002, 0.01, 0.02, 0.04, 0.1, 0.3)


def make_words(generator: random.Random, count: int = 3000) -> list[str]:
    """Words of letters, as many of them short as in a language."""
    letters = "etaoinshrdlcumwfgypbvkäéшж"
    return ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(count)]


def plant_copies(num_texts: int, seed: int = 0) -> list[str]:
    """Texts of 40 to 400 words, and after some of them, anywhere, up to three changed copies."""
    generator = random.Random(seed)
    words = make_words(generator)
    texts = []
    for _ in range(num_texts):
        text = " ".join(make_sentence(generator, words) for _ in range(generator.randint(4, 35)))
        texts.append((generator.random(), text))
        for _ in range(generator.choice((0, 0, 1, 1, 2, 3))):
            change, share = generator.choice(CHANGES), generator.choice(SHARES)
            texts.append((generator.random(), change_text(generator, words, text, change, share)))
    return [text for _, text in sorted(texts)]


def make_sentence(generator: random.Random, words: list[str]) -> str:
    """About ten words with a full stop."""
    chosen = generator.choices(words, k=generator.randint(4, 18))
    return " ".join(chosen).capitalize() + "."


def change_text(
    generator: random.Random, words: list[str], text: str, change: str, share: float
) -> str:
    """A text with one kind of change."""
    found = text.split(" ")
    match change:
        case "replace":
            found = [generator.choice(words) if generator.random() < share else w for w in found]
        case "insert":
            found = [x for w in found for x in ([w, "new"] if generator.random() < share else [w])]
        case "delete":
            found = [w for w in found if generator.random() >= share]
        case "shuffle":
            sentences = text.split(". ")
            for _ in range(max(int(share * len(sentences)), 1)):
                sentences.append(sentences.pop(generator.randrange(len(sentences))))
            return ". ".join(sentences)
        case "case":
            return text.upper().replace(" ", " \n") if share < 0.1 else text.replace(".", " --")
        case "frame":
            frame = " ".join(generator.choices(words, k=int(share * len(found)) + 1))
            return f"{frame} | {text}"
        case "cut":
            found = found[: len(found) - int(share * len(found))]
    return " ".join(found)


def split_words(text: str) -> list[str]:
    """The words of a text, found otherwise than velocity does, for texts without far scripts."""
    lowered = text.lower()
    return re.findall(r"[0-9a-zäéшж]+", lowered)


def shingle(text: str, num_words: int = 5) -> Shingles:
    """The runs of `num_words` words in a text."""
    words = split_words(text)
    return frozenset(
        tuple(words[at : at + num_words]) for at in range(max(len(words) - num_words, 0) + 1)
    )


def measure_pairs(texts: list[str]) -> Iterator[tuple[int, int, float]]:
    """The pairs of texts that share a shingle, and their Jaccard similarity: a plain count."""
    shingles = [shingle(text) for text in texts]
    for (i, one), (j, other) in combinations(enumerate(shingles), 2):
        if shared := len(one & other):
            yield i, j, shared / len(one | other)
