"""A token for each row on a GPU, as a CUDA graph: launched once instead of kernel by kernel.

The launches of a small model's kernels take longer than the kernels. A graph is recorded for a
number of rows and a length, rounded up, and replayed with what has changed since: the tokens, and
how many each row holds. Where recording fails, or is no faster, torch computes alone.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.cache import KVCache, allocate_cache
from model.transformer import Transformer

logger = logging.getLogger("velocity")

MAX_ROWS = 64
MAX_GRAPHS = 64  # Each has memory of its own; with more, all are recorded anew.
# Lengths are rounded up to this many tokens: each takes a graph, and what it looks at too much.
TOKENS_MULTIPLE = 256
STEPS_TIMED = 16
Replay = Callable[[], None]


class FixedCache(KVCache):
    """Rows of another cache as a graph sees them: how long each is, is only known on the device."""

    def __init__(self, whole: KVCache, ends: Tensor, num_seen: int) -> None:
        super().__init__(whole.keys, whole.values, whole.lengths)
        self.ends = ends
        self.num_seen = num_seen

    def begin(self, num_tokens: int) -> Tensor:
        """As KVCache's, of one token in rows that are as long as `ends` says."""
        assert num_tokens == 1
        self.positions = self.ends[:, None]
        self.are_equal = False
        places = torch.arange(self.num_seen, device=self.ends.device)
        self.mask = (places <= self.positions[:, :, None])[:, None]
        return self.positions


@dataclass(frozen=True)
class Graph:
    """What is recorded, with the memory that it reads and writes."""

    tokens: Tensor  # (B, 1)
    ends: Tensor  # (B,)
    logits: Tensor  # (B, V)
    replay: Replay


class GraphStep:
    """A model's steps as graphs, one for each number of rows and each length, as they are met."""

    def __init__(
        self, model: Transformer, record: Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]]
    ) -> None:
        self._model = model
        self._record = record
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._memory = 0  # Where the keys are that the graphs read.

    def takes(self, num_rows: int, num_tokens: int) -> bool:
        """Whether it is to be used for so many rows of so many tokens."""
        return num_tokens == 1 and num_rows <= MAX_ROWS

    @torch.inference_mode()
    def predict(self, tokens: Tensor, cache: KVCache, places: Tensor | None = None) -> Tensor:
        """As `Transformer.predict`, for one token in each row."""
        if cache.keys.data_ptr() != self._memory or len(self._graphs) > MAX_GRAPHS:
            self._graphs.clear()
            self._memory = cache.keys.data_ptr()
        room, longest = cache.keys.shape[3], max(cache.lengths) + 1
        num_seen = min(room, -(-longest // TOKENS_MULTIPLE) * TOKENS_MULTIPLE)
        ends = torch.tensor(cache.lengths, device=tokens.device)
        key = (len(tokens), num_seen)
        if key not in self._graphs:
            self._graphs[key] = self._make_graph(tokens.clone(), ends.clone(), cache, num_seen)
        graph = self._graphs[key]
        graph.tokens.copy_(tokens)
        graph.ends.copy_(ends)
        graph.replay()
        cache.set_lengths([length + 1 for length in cache.lengths])
        return graph.logits.clone() if places is None else graph.logits[places]

    def _make_graph(self, tokens: Tensor, ends: Tensor, cache: KVCache, num_seen: int) -> Graph:
        def work() -> Tensor:
            # Writes what replaying will write, to the same places.
            return self._model.predict(tokens, FixedCache(cache, ends, num_seen))

        logits, replay = self._record(work)
        return Graph(tokens, ends, logits, replay)


def record_on_gpu(work: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
    """Record what `work` launches: where its result will be, and what launches it again.

    It runs before, on another stream, as whatever is set up at a first run must not be recorded.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return result, graph.replay


def find_graphs(model: Transformer) -> GraphStep | None:
    """Graphs of a model on CUDA, tried and timed here and now; None where torch alone is faster."""
    step = GraphStep(model, record_on_gpu)
    try:
        ours, logits = time_steps(model, step.predict)
        plain, expected = time_steps(model, model.predict)
    except RuntimeError as error:  # Whatever cannot be recorded, and memory that is not there.
        logger.debug("velocity: no CUDA graphs: %s", error)
        return None
    difference = float((logits - expected).abs().max() / expected.std())
    if difference > 0.05:
        logger.debug("velocity: no CUDA graphs: logits differ by %.3g deviations", difference)
        return None
    return step if ours < plain else None


def time_steps(
    model: Transformer, predict: Callable[[Tensor, KVCache], Tensor]
) -> tuple[float, Tensor]:
    """Seconds for some steps of two rows, without the first, and the last one's logits."""
    norm = model.model.norm.weight
    cache = allocate_cache(model.config, 2, 2 * STEPS_TIMED, norm.device, norm.dtype)
    cache.set_lengths([0, 3])
    token = torch.ones(2, 1, dtype=torch.long, device=norm.device)
    logits = predict(token, cache)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(STEPS_TIMED):
        logits = predict(token, cache)
    torch.cuda.synchronize()
    return time.perf_counter() - started, logits
