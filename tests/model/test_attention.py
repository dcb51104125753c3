"""The kernel of attention is the one that was asked for, or a line says why not."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from model import attention
from model.attention import Heads, find_kernel, use_attention
from model.config import AttentionKernel
from model.recompute import ActivationCheckpointing
from tests.live import Operators
from tests.tiny import CONFIG, make_model

HEADS = Heads(torch.device("cpu"), torch.float32, 4, 4, CONFIG.head_size, 31)
GPU = Heads(torch.device("cuda", 0), torch.float16, 32, 32, 64, 2048)
FLASH = "_scaled_dot_product_flash_attention_for_cpu"


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize(("wish", "used"), [("auto", True), ("flash", True), ("math", False)])
def test_the_kernel_that_is_wished_for_computes(
    wish: AttentionKernel, used: bool, checkpointing: ActivationCheckpointing
) -> None:
    model = make_model()
    model.activation_checkpointing = checkpointing
    tokens = torch.randint(CONFIG.num_ids, (2, 31), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens, tokens)
    with use_attention(wish, HEADS) as kernel, Operators() as operators:
        loss = model(tokens, tokens)
        loss.backward()
    assert kernel == ("flash" if wish == "auto" else wish)
    assert (FLASH in operators.counts) == (f"{FLASH}_backward" in operators.counts) == used
    torch.testing.assert_close(loss.detach(), expected)


@pytest.mark.filterwarnings("ignore")  # The compiler has its own.
def test_compiled_blocks_have_the_same_kernel() -> None:
    torch._dynamo.reset()
    model, tokens = make_model(), torch.randint(CONFIG.num_ids, (2, 31))
    model.compile_blocks("aot_eager")
    with use_attention("math", HEADS), Operators() as operators:
        model(tokens, tokens).backward()
    assert FLASH not in operators.counts
    assert operators.counts["bmm"] > 0


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ("cudnn", "is cudnn, which torch does not have on cpu for heads of 16 in float32; set tr"),
        ("efficient", "is efficient, which torch does not have on cpu for heads of 16 in float32"),
        ("fa3", "is fa3: it needs a Hopper GPU, and this is cpu; set training.attention=auto"),
    ],
)
def test_an_impossible_wish_is_one_line(wish: AttentionKernel, message: str) -> None:
    with (
        pytest.raises(ValueError, match=f"^training.attention {message}"),
        use_attention(wish, HEADS),
    ):
        pass
    assert find_kernel(HEADS) == "flash"


class Gpu:
    """A GPU that torch seems to see, and the order of kernels that it is given."""

    def __init__(self, major: int, has_fa3: bool) -> None:
        self.major, self.has_fa3 = major, has_fa3
        self.order: list[SDPBackend] = []
        self.fa3_calls: list[str] = []


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu(9, has_fa3=False)

    def find_first(heads: Heads) -> str:
        gpu.order = attention_order()
        names = {backend: name for name, backend in attention.BACKENDS.items() if name != "fa3"}
        return names[gpu.order[0]]

    def attention_order() -> list[SDPBackend]:
        module: Any = torch.nn.attention
        found: list[SDPBackend] = module._cur_sdpa_kernel_backends(with_priority=True)
        return found

    module: Any = torch.nn.attention
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (gpu.major, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(attention, "find_kernel", find_first)
    monkeypatch.setattr(
        attention.importlib.util,
        "find_spec",
        lambda name: SimpleNamespace() if gpu.has_fa3 else None,
    )
    monkeypatch.setitem(sys.modules, attention.FA3_PACKAGE, ModuleType(attention.FA3_PACKAGE))
    monkeypatch.setattr(torch.ops, "flash_attn_3", SimpleNamespace(fwd=1, bwd=1), raising=False)
    monkeypatch.setattr(module, "activate_flash_attention_impl", gpu.fa3_calls.append)
    monkeypatch.setattr(
        module, "restore_flash_attention_impl", lambda: gpu.fa3_calls.append("none")
    )
    return gpu


@pytest.mark.parametrize(
    ("major", "has_fa3", "precision", "expected"),
    [
        (9, True, torch.float16, "fa3"),
        (9, False, torch.bfloat16, "cudnn"),
        (9, True, torch.float32, "flash"),
        (8, True, torch.float16, "flash"),
    ],
)
def test_auto_takes_the_fastest_that_a_gpu_has(
    gpu: Gpu, major: int, has_fa3: bool, precision: torch.dtype, expected: str
) -> None:
    gpu.major, gpu.has_fa3 = major, has_fa3
    heads = Heads(GPU.device, precision, 32, 32, 64, 2048)
    with use_attention("auto", heads) as kernel:
        assert kernel == expected
    # What cannot be done by the first, such as a mask, is done by another.
    assert SDPBackend.MATH in gpu.order
    assert gpu.fa3_calls == (["FA3", "none"] if expected == "fa3" else [])
    assert find_kernel(HEADS) == "flash"


def test_auto_does_without_a_package_that_cannot_be_loaded(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.has_fa3 = True
    with monkeypatch.context() as patched:
        patched.setattr(torch.ops, "flash_attn_3", SimpleNamespace(fwd=1))
        with use_attention("auto", GPU) as kernel:
            assert kernel == "cudnn"
        with pytest.raises(ValueError, match=r"fa3: the package .* is one that torch cannot call"):
            use_attention("fa3", GPU).__enter__()
    monkeypatch.setitem(sys.modules, attention.FA3_PACKAGE, None)
    with use_attention("auto", GPU) as kernel:
        assert kernel == "cudnn"
    with pytest.raises(ValueError, match="fa3: the package flash_attn_interface cannot be loaded"):
        use_attention("fa3", GPU).__enter__()


def test_code_that_was_compiled_for_another_kernel_is_not_taken() -> None:
    """torch's cache on disk does not look at which kernels are allowed."""
    before = torch.compiler.config.cache_key_tag
    tags = []
    for wish in ("flash", "math"):
        with use_attention(wish, HEADS):
            tags.append(torch.compiler.config.cache_key_tag)
    assert len({before, *tags}) == 3
    assert torch.compiler.config.cache_key_tag == before


def test_fa3_says_what_it_lacks(gpu: Gpu) -> None:
    with pytest.raises(ValueError, match="fa3: the package flash_attn_interface is not installed"):
        attention.use_fa3(GPU).__enter__()
    gpu.major = 8
    with pytest.raises(ValueError, match="fa3: it needs a Hopper GPU, and this is A GPU; set"):
        attention.use_fa3(GPU).__enter__()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("wish", ["auto", "flash", "cudnn", "efficient", "math"])
def test_every_kernel_of_a_gpu_gives_the_same_gradients(wish: AttentionKernel) -> None:
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    shape = (2, 4, 256, 64)
    q, k, v = (torch.randn(shape, device=device, generator=generator) for _ in range(3))
    results = []
    for dtype, kernel in ((torch.float32, "math"), (torch.float16, wish)):
        given = [tensor.to(dtype).requires_grad_() for tensor in (q, k, v)]
        with use_attention(kernel, Heads(device, dtype, 4, 4, 64, 256)) as found:
            assert kernel in ("auto", found)
            y = torch.nn.functional.scaled_dot_product_attention(*given, is_causal=True)
            y.float().square().sum().backward()
        results.append([y.detach(), *(tensor.grad for tensor in given)])
    for exact, half in zip(*results, strict=True):
        assert exact is not None
        assert half is not None
        assert ((half.float() - exact).norm() / exact.norm()).item() < 5e-3
