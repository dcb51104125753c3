"""A step with fixed shapes computes what any other does; on a GPU it is recorded as a graph."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.decode.generator import Generator
from model.decode.settings import Settings
from model.steps import cuda as graphs
from model.steps.cuda import GraphStep, find_graphs
from tests.tiny import make_model, make_tokenizer

PROMPTS = ["One two three", "x", "And a longer one: she said it was so"]
GREEDY = Settings(do_sample=False, max_new_tokens=40)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
recorded = list[Tensor]()


def record(work: Callable[[], Tensor]) -> tuple[Tensor, graphs.Replay]:
    """As a graph does: the same work again and again, with the same memory."""
    result = work()
    recorded.append(result)

    def replay() -> None:
        result.copy_(work())

    return result, replay


def test_texts_are_the_same_with_fixed_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "TOKENS_MULTIPLE", 16)
    recorded.clear()
    plain = Generator(make_model().double(), make_tokenizer()).complete(PROMPTS, GREEDY)
    fixed = Generator(make_model().double(), make_tokenizer())
    fixed.predictor.step = GraphStep(fixed.model, record)
    assert fixed.complete(PROMPTS, GREEDY) == plain
    # One for each number of rows and each 16 tokens of the longest; and none is lost to the next.
    assert 2 <= len(recorded) <= 8
    assert fixed.complete(PROMPTS[:2], GREEDY) == plain[:2]


def test_prompts_and_guesses_are_not_for_graphs() -> None:
    step = GraphStep(make_model(), record)
    assert step.takes(64, 1)
    assert not step.takes(65, 1)
    assert not step.takes(1, 2)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_graphs_on_a_gpu_give_the_logits_of_torch(dtype: torch.dtype) -> None:
    model = make_model().to("cuda", dtype).eval()
    step = find_graphs(model)
    assert step is not None, "no graph was recorded, or it is slower than single kernels"
    plain, quick = (Generator(model, make_tokenizer()) for _ in range(2))
    quick.predictor.step = step
    assert quick.complete(PROMPTS, GREEDY) == plain.complete(PROMPTS, GREEDY)
