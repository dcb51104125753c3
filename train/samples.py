"""Texts that a run writes as it trains, of the same prompts each time, so that one can compare."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from model.cache import KVCache
from model.checkpoints.hugging_face import Boundaries
from model.checkpoints.kept_tokenizer import KeptTokenizer
from model.decode.generator import Generator
from model.decode.predictor import Predictor
from model.decode.settings import Settings
from model.sample.options import Prompts
from model.sample.prompts import read_prompts
from model.transformer import Transformer
from shards.disk.layout import TOKENIZER
from shards.reader import Shards
from shards.screen.lines import Say
from shards.tokenizer import read_tokenizer_json
from train.config import Config
from train.reports.texts import Sample

# The beginning of a document, and words with which texts of many kinds go on.
PROMPTS = ("", "Once upon a time", "The most important thing", "In 1969,")
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Sampler:
    """Writes a text for each prompt, always drawn with the same seed."""

    tokenizer: Tokenizer
    boundaries: Boundaries
    prompts: tuple[str, ...]
    seed: int

    def write(self, model: Transformer) -> list[Sample]:
        """The texts of a model that is being trained, which is then as it was.

        They are drawn by generators of their own, so that the run's takes no part. Its weights are
        fp32, and so is what is computed. Where the ranks share a model in parts, all call this.
        """
        if isinstance(model, FSDPModule):
            gather_once(model)
        settings = Settings(max_new_tokens=MAX_NEW_TOKENS, seed=self.seed)
        with paused(model):
            done = self._open(model).complete(self.prompts, settings)
        return [
            Sample(prompt, text.text.removeprefix(prompt), self.seed)
            for prompt, text in zip(self.prompts, done, strict=True)
        ]

    def check(self, model: Transformer, origin: str) -> None:
        """ValueError if a prompt leaves no room in the model's context; it names `origin`."""
        with paused(model):
            generator = self._open(model)
            for number, prompt in enumerate(self.prompts, start=1):
                try:
                    generator.start([prompt], Settings(max_new_tokens=1, seed=self.seed))
                except ValueError as error:
                    raise ValueError(f"{origin}, prompt {number}: {error}") from None

    def _open(self, model: Transformer) -> Generator:
        predictor = SharedPredictor if isinstance(model, FSDPModule) else Predictor
        ends, begin = (self.boundaries.end,), self.boundaries.first
        return Generator(model, self.tokenizer, ends, begin, predictor)


class SharedPredictor(Predictor):
    """A model in parts on every rank: all choose each token by the first's logits.

    So all need as many tokens, even where they round differently.
    """

    @torch.inference_mode()
    def predict(
        self, tokens: Sequence[Sequence[int]], cache: KVCache, places: Sequence[int] | None = None
    ) -> Tensor:
        """As Predictor's, with the first rank's logits."""
        logits = super().predict(tokens, cache, places).contiguous()
        dist.broadcast(logits, 0)
        return logits


def gather_once(model: Transformer) -> None:
    """Let each part have the memory that its weights are gathered into, if it has none yet.

    Made while a text is written, in inference mode, it could not be used in training.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def make_sampler(config: Config, shards: Shards, model: Transformer, say: Say) -> Sampler:
    """What writes a run's texts; ValueError for a file of prompts that it cannot take."""
    path = config.training.sample_prompts
    if path is not None and not Path(path).is_file():
        raise ValueError(
            f"training.sample_prompts is {path}: no such file; expected one with a prompt on each "
            "line"
        )
    prompts = PROMPTS if path is None else read_prompts(Prompts(prompt_lines=path), say)
    manifest = shards.manifest
    boundaries = Boundaries(manifest.end_of_text, manifest.begin_of_text)
    tokenizer = KeptTokenizer(read_tokenizer_json(shards.folder / TOKENIZER), boundaries).load()
    sampler = Sampler(tokenizer, boundaries, tuple(prompts), config.infrastructure.seed)
    sampler.check(model, path or "training.sample_prompts")
    return sampler


@contextmanager
def paused(model: Transformer) -> Iterator[None]:
    """Let a model write texts in the midst of training.

    Its compiled blocks are for training's shapes. A text has another one at each token.
    """
    is_training = model.training
    try:
        with model.uncompiled():
            yield
    finally:
        model.train(is_training)
