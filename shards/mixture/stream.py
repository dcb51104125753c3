"""The tokens of several sets as one stream: the sets' splits, one after another."""

from collections.abc import Sequence

import numpy as np

from shards.format import Int64
from shards.reader import TokenStream
from shards.widths import Tokens


class MixedStream:
    """Streams of token ids as if they were one array of `num_tokens`; no window spans two."""

    def __init__(self, streams: Sequence[TokenStream]) -> None:
        self.streams = streams
        # As wide as the widest: where ids are the same, so is their width in the sets.
        self.dtype = max((stream.dtype for stream in streams), key=lambda dtype: dtype.itemsize)
        sizes = [stream.num_tokens for stream in streams]
        # firsts[i] is the position of stream i's first token.
        self.firsts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self.num_tokens = int(self.firsts[-1])

    def windows(self, starts: Int64, num_tokens: int) -> Tokens:
        """The windows of `num_tokens` ids that begin at `starts`: (len(starts), num_tokens).

        Raises ValueError if a set does not hold all of them, or what is there is damaged.
        """
        tokens: Tokens = np.empty((len(starts), num_tokens), self.dtype)
        self.fill(tokens, starts)
        return tokens

    def fill(self, out: Tokens, starts: Int64) -> None:
        """Write to each row of `out` the window that begins at that place of `starts`.

        Raises as `windows` does.
        """
        if len(self.streams) == 1:
            self.streams[0].fill(out, starts)
            return
        # What lies beyond the ends is refused by the stream there.
        last = len(self.streams) - 1
        places = (np.searchsorted(self.firsts, starts, side="right") - 1).clip(0, last)
        for place in np.unique(places).tolist():
            rows = np.flatnonzero(places == place)
            own = starts[rows] - self.firsts[place]
            out[rows] = self.streams[place].windows(own, out.shape[1])

    def close(self) -> None:
        """Close the files; what is read later opens them again."""
        for stream in self.streams:
            stream.close()
