"""Guesses of the tokens to come: what followed the last few where the text had them before.

Prompt-lookup decoding (Saxena 2023). A guess costs one look at several tokens instead of one each,
and changes no text: a token is kept only if it would have been chosen.
"""

from collections.abc import Sequence

LONGEST, SHORTEST = 3, 2  # How many tokens must have occurred before; longer ones guess better.


class Lookup:
    """Where short runs of tokens in one growing text were last followed by something."""

    def __init__(self) -> None:
        self._followed: dict[tuple[int, ...], int] = {}
        self._num_seen = 0

    def propose(self, tokens: Sequence[int], room: int) -> list[int]:
        """At most `room` tokens that may come after `tokens`; none where nothing repeats.

        They follow the latest place where the last three tokens, or else the last two, occurred.

        >>> Lookup().propose([1, 2, 3, 4, 9, 2, 3], room=2), Lookup().propose([1, 2, 3], room=2)
        ([4, 9], [])
        """
        if room <= 0:
            return []
        for end in range(self._num_seen, len(tokens)):
            for size in range(SHORTEST, LONGEST + 1):
                if end >= size:
                    self._followed[tuple(tokens[end - size : end])] = end
        self._num_seen = len(tokens)
        for size in range(LONGEST, SHORTEST - 1, -1):
            place = self._followed.get(tuple(tokens[-size:]))
            if place is not None:
                return list(tokens[place : place + room])
        return []
