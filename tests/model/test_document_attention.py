"""Attention inside documents: what each would give alone, by every way of computing it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from model import documents, transformer
from model.attention import Heads, use_attention
from model.documents import Marks, attend_at_once, attend_each, find_bounds, find_firsts
from model.recompute import ActivationCheckpointing
from model.transformer import Transformer
from tests.live import LiveBytes, Operators
from tests.model.test_model import make_llama
from tests.tiny import CONFIG, make_model

MARKS = Marks(end_of_text=0)
SHARED = replace(CONFIG, num_key_value_heads=2)
# Where documents begin in each row of `make_windows`: at end tokens, and with each row.
FIRSTS = [[0, 1, 5, 6, 22], [0, 30], [0]]


def make_windows() -> Tensor:
    """Windows (3, 33) of tokens and targets, of documents that are as short as can be and whole."""
    generator = torch.Generator().manual_seed(2)
    windows = torch.randint(1, CONFIG.num_ids, (len(FIRSTS), 33), generator=generator)
    for row, firsts in zip(windows, FIRSTS, strict=True):
        row[firsts[1:]] = MARKS.end_of_text
    return windows


def make_separate(model: Transformer, marks: Marks = MARKS) -> Transformer:
    model.model.separation.marks = marks
    return model


def list_documents(windows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The tokens and targets of each document, (1, n) each; the last target is what ends it."""
    for row, firsts in zip(windows, FIRSTS, strict=True):
        for first, stop in zip(firsts, [*firsts[1:], 32], strict=True):
            yield row[None, first:stop], row[None, first + 1 : stop + 1]


def find_gradients(
    model: Transformer, losses: Iterator[Tensor] | list[Tensor]
) -> dict[str, Tensor]:
    """The gradients of the sum of the losses, and the sum as `loss`."""
    model.zero_grad()
    total = torch.stack([*losses]).sum()
    total.backward()
    found = {"loss": total.detach()}
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        found[name] = weight.grad.clone()
    return found


def learn(model: Transformer, windows: Tensor) -> dict[str, Tensor]:
    """Loss and gradients of all windows at once."""
    return find_gradients(model, [model(windows[:, :-1], windows[:, 1:])])


@pytest.mark.parametrize("config", [CONFIG, SHARED])
def test_a_document_is_computed_as_if_it_were_alone(config: Any) -> None:
    """Logits and gradients, in fp64: nothing of another document is in them, nothing lacks."""
    model, windows = make_model(config).double(), make_windows()
    parts = list(list_documents(windows))
    expected = find_gradients(
        model,
        (model(tokens, targets) * tokens.numel() / (3 * 32) for tokens, targets in parts),
    )
    logits = torch.cat([model(tokens)[0] for tokens, _ in parts])
    together = model(windows[:, :-1])
    assert (together.flatten(0, 1) - logits).abs().max() > 1  # A window is one text, by default.
    make_separate(model)
    torch.testing.assert_close(model(windows[:, :-1]).flatten(0, 1), logits, atol=1e-12, rtol=0)
    found = learn(model, windows)
    for name, gradient in expected.items():
        # The loss rounds to fp32.
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("has_mask", [False, True])
def test_logits_and_gradients_equal_transformers(has_mask: bool) -> None:
    """By positions that begin anew, from which it infers documents, and by a mask of blocks."""
    model, windows = make_model().double(), make_windows()
    llama = make_llama(model).double()
    tokens = windows[:, :-1]
    owners, positions = torch.zeros_like(tokens), torch.arange(32).repeat(3, 1)
    for row, firsts in enumerate(FIRSTS):
        for first in firsts[1:]:
            owners[row, first:] += 1
            positions[row, first:] = torch.arange(32 - first)
    mask = (owners[:, :, None] == owners[:, None]) & torch.ones(32, 32).tril().bool()
    # Without a mask, it takes documents apart in a batch of one row alone.
    expected = torch.cat(
        [
            llama(
                tokens[row, None],
                mask[row, None, None] if has_mask else None,
                positions[row, None],
                use_cache=False,
            ).logits
            for row in range(3)
        ]
    )
    make_separate(model)
    torch.testing.assert_close(model(tokens), expected, atol=1e-10, rtol=0)
    loss = cross_entropy(expected.flatten(0, 1), windows[:, 1:].flatten())
    loss.backward()
    found = learn(model, windows)
    for name, weight in llama.named_parameters():
        # What comes from the loss is rounded to fp32.
        torch.testing.assert_close(found[name], weight.grad, atol=2e-6, rtol=1e-6)
    assert found["loss"].item() == pytest.approx(loss.item(), abs=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_what_blocks_keep_changes_no_bit(
    checkpointing: ActivationCheckpointing, dtype: torch.dtype | None
) -> None:
    model, windows = make_separate(make_model()), make_windows()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        expected = learn(model, windows)
        model.activation_checkpointing = checkpointing
        with Operators() as operators:
            found = learn(model, windows)
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name
    # A document is one call of the kernel, computed twice only where all is.
    calls = operators.counts["_scaled_dot_product_flash_attention_for_cpu"]
    num_documents = sum(map(len, FIRSTS))
    assert calls == CONFIG.num_hidden_layers * num_documents * (2 if checkpointing == "full" else 1)


def test_a_window_of_one_document_is_computed_as_before() -> None:
    """Bit for bit: one call for each row of what is one call for all."""
    model, windows = make_model(), make_windows()
    windows[windows == MARKS.end_of_text] = 1
    expected = model(windows[:, :-1])
    assert torch.equal(make_separate(model)(windows[:, :-1]), expected)


def test_losses_of_tokens_keep_documents_apart() -> None:
    model, windows = make_separate(make_model()), make_windows()
    losses, _ = model.token_losses(windows[:, :-1], windows[:, 1:])
    losses = losses.view(len(windows), -1).mean(1)
    alone = [model(row[None, :-1], row[None, 1:]) for row in windows]
    torch.testing.assert_close(losses, torch.stack(alone).detach())


def test_a_prompt_is_one_text_whatever_is_in_it() -> None:
    """What is read into a cache is seen, the end token that begins a text too."""
    model = make_model().eval()
    tokens = make_windows()[:, :-1]
    logits = []
    for marks in (None, MARKS):
        model.model.separation.marks = marks
        cache = transformer.KVCache(
            *torch.zeros(2, 3, 3, 4, 32, CONFIG.head_size), lengths=[0, 0, 0]
        )
        logits.append(model.predict(tokens, cache))
    assert torch.equal(*logits)


def test_no_memory_grows_with_the_square_of_a_window() -> None:
    """Twice the tokens in twice the documents take twice the memory, with gradients."""
    config = replace(CONFIG, max_position_embeddings=4096, num_hidden_layers=1)
    model = make_separate(make_model(config))
    model.activation_checkpointing = "full"
    peaks = []
    for num_tokens in (2048, 4096):
        windows = torch.randint(1, 300, (1, num_tokens + 1))
        windows[:, ::256] = MARKS.end_of_text
        with LiveBytes() as live:
            hidden = model.model(windows[:, :-1], activation_checkpointing="full")
            hidden.sum().backward()
        peaks.append(live.peak)
        scores = CONFIG.num_attention_heads * num_tokens**2 * 4
        assert live.peak < scores
    assert peaks[1] / peaks[0] < 2.2


# Compiled blocks, and all documents at once


class Kernel:
    """In place of FlashAttention for documents of any lengths: its arguments, checked, and sums.

    The operator is torch's own, with its shapes for the compiler and its rule for gradients; what
    it would run on a GPU is computed here, by a mask.
    """

    def __init__(self) -> None:
        self.calls = 0

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bounds: Tensor,
        other: Tensor,
        longest: int,
        also: int,
        is_causal: bool = False,
        scale: float | None = None,
        window: Sequence[int] = (),
        shares: bool = False,
        *rest: None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert torch.equal(bounds, other)
        assert (bounds.dtype, bounds[0].item()) == (torch.int32, 0)
        assert bounds[-1].item() == len(query)
        assert longest == also >= bounds.diff().max()
        assert (is_causal, scale, window) == (True, None, [-1, 0])
        assert shares == (key.shape[1] != query.shape[1])
        assert all(x.stride(-1) == 1 for x in (query, key, value))
        self.calls += 1
        weights, values = self.weigh(query, key, bounds), self.spread(value, query)
        lse = query.new_zeros(query.shape[1], len(query), dtype=torch.float32)
        y = (weights @ values).transpose(0, 1).contiguous()
        return y, lse, torch.zeros(2, dtype=torch.uint64)

    def backward(
        self, dy: Tensor, query: Tensor, key: Tensor, value: Tensor, y: Tensor, *rest: Any
    ) -> tuple[Tensor, ...]:
        weights, values = self.weigh(query, key, rest[1]), self.spread(value, query)
        dy = dy.transpose(0, 1)
        dweights = dy @ values.mT
        dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
        dscores = dscores / query.shape[-1] ** 0.5
        dquery = dscores @ self.spread(key, query)
        shared = (len(weights) // key.shape[1], -1)
        dkey, dvalue = (
            x.unflatten(0, shared[::-1]).sum(1)
            for x in (dscores.mT @ query.transpose(0, 1), weights.mT @ dy)
        )
        return tuple(x.transpose(0, 1).contiguous() for x in (dquery, dkey, dvalue))

    def spread(self, x: Tensor, query: Tensor) -> Tensor:
        """x (N, G, K) for each head of queries, (H, N, K)."""
        return x.transpose(0, 1).repeat_interleave(query.shape[1] // x.shape[1], 0)

    def weigh(self, query: Tensor, key: Tensor, bounds: Tensor) -> Tensor:
        """How much each token takes of each, (H, N, N)."""
        owners = torch.bucketize(torch.arange(len(query)), bounds, right=True)
        mask = (owners[:, None] == owners) & torch.ones(len(query), len(query)).tril().bool()
        scores = query.transpose(0, 1) @ self.spread(key, query).mT / query.shape[-1] ** 0.5
        return scores.masked_fill(~mask, -torch.inf).softmax(-1)


@pytest.fixture(scope="module")
def registered() -> Kernel:
    from torch.nn.attention import varlen

    kernel, module = Kernel(), varlen
    operators: Any = module
    operators._varlen_attn.register_kernel("cpu")(lambda *given: kernel.forward(*given))
    operators._varlen_attn_backward.register_kernel("cpu")(lambda *given: kernel.backward(*given))
    return kernel


@pytest.fixture
def kernel(registered: Kernel, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """As if this were a GPU on which all documents are computed at once."""
    monkeypatch.setattr(documents, "computes_at_once", lambda *heads: True)
    registered.calls = 0
    return registered


@pytest.mark.parametrize("config", [CONFIG, SHARED])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_all_at_once_gives_what_one_after_another_does(
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    checkpointing: ActivationCheckpointing,
    config: Any,
) -> None:
    model, windows = make_separate(make_model(config)), make_windows()
    with monkeypatch.context() as patched:
        patched.setattr(documents, "computes_at_once", lambda *heads: False)
        expected = learn(model, windows)
    assert kernel.calls == 0
    model.activation_checkpointing = checkpointing
    found = learn(model, windows)
    # `selective` keeps what attention gives.
    layers = config.num_hidden_layers
    assert kernel.calls == (2 * layers if checkpointing == "full" else layers)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")  # The compiler has its own.
@pytest.mark.parametrize(("at_once", "checkpointing"), [(True, "selective"), (False, "none")])
def test_compiled_blocks_are_compiled_once_for_any_documents(
    registered: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    at_once: bool,
    checkpointing: ActivationCheckpointing,
) -> None:
    monkeypatch.setattr(documents, "computes_at_once", lambda *heads: at_once)
    torch._dynamo.reset()
    model, windows = make_separate(make_model()), make_windows()
    expected, other = learn(model, windows), learn(model, windows.flip(1))
    model.activation_checkpointing = checkpointing
    model.compile_blocks("aot_eager" if at_once else "eager")
    counters = torch._dynamo.utils.counters
    counters.clear()
    found = learn(model, windows)
    # A block and the loss; attention of one after another is no part of a graph, and cuts blocks.
    num_graphs = counters["stats"]["unique_graphs"]
    assert num_graphs == 2 or not at_once
    assert bool(counters["graph_break"]) == (not at_once)
    again = learn(model, windows.flip(1))
    assert counters["stats"]["unique_graphs"] == num_graphs
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(again[name], other[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "head_size", "generation", "wish", "expected"),
    [
        (torch.float16, 64, 9, "auto", True),
        (torch.bfloat16, 128, 8, "flash", True),
        (torch.float32, 64, 9, "auto", False),
        (torch.float16, 20, 9, "auto", False),
        (torch.float16, 264, 9, "auto", False),
        (torch.float16, 64, 7, "auto", False),
        (torch.float16, 64, 9, "math", False),
    ],
)
def test_all_at_once_is_where_a_gpu_has_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    head_size: int,
    generation: int,
    wish: str,
    expected: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
    allowed = SDPBackend.MATH if wish == "math" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(allowed):
        found = documents.computes_at_once(torch.device("cuda", 0), dtype, head_size)
        assert found == expected
        assert not documents.computes_at_once(torch.device("cpu"), dtype, head_size)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gpu_gives_what_one_after_another_gives_in_fp32(dtype: torch.dtype, groups: int) -> None:
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    bounds = torch.tensor([0, 1, 5, 130, 256, 300, 512], dtype=torch.int32, device=device)
    shapes = [(2, heads, 256, 64) for heads in (4, groups, groups)]
    given = [torch.randn(shape, device=device, generator=generator) for shape in shapes]
    results = []
    for compute, kind in ((attend_each, torch.float32), (attend_at_once, dtype)):
        q, k, v = (x.to(kind).requires_grad_() for x in given)
        with use_attention("auto", Heads(device, kind, 4, groups, 64, 256, by_document=True)):
            y = compute(q, k, v, bounds)
            y.float().square().sum().backward()
        results.append([y.detach(), q.grad, k.grad, v.grad])
    for exact, rounded in zip(*results, strict=True):
        assert exact is not None
        assert rounded is not None
        assert ((rounded.float() - exact).norm() / exact.norm()).item() < 1e-2


def test_bounds_of_windows() -> None:
    tokens = make_windows()[:, :-1]
    firsts = [32 * row + first for row, found in enumerate(FIRSTS) for first in found]
    assert find_bounds(find_firsts(tokens, MARKS)).tolist() == [*firsts, 96]
