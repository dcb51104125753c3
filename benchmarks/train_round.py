"""One engine's round of benchmarks.train, run in its own process.

What only one side needs is imported where it is used, so that it takes none of the other's memory.
"""

import argparse
import importlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.measure import Figures, Json, say
from model.products import multiply
from model.transformer import Transformer
from shards.order import SampleOrder
from shards.reader import open_shards
from train.config import Config, DistributedConfig
from train.ranks.distributed import choose_device, join_ranks
from train.reports.throughput import compute_mfu, find_device_peak, measure_peak_memory
from train.settings import load_config
from train.step.precision import DTYPES

if TYPE_CHECKING:
    from train.run import Run


def make_config(options: argparse.Namespace, scratch: Path) -> Config:
    """Our settings of the run, with a constant learning rate."""
    settings = {
        "model.hidden_size": options.hidden_size,
        "model.num_hidden_layers": options.layers,
        "model.num_attention_heads": options.heads,
        "model.intermediate_size": options.intermediate_size,
        "model.max_position_embeddings": options.max_seq_length,
        "data.shards": scratch / "shards",
        "data.max_seq_length": options.max_seq_length,
        "training.batch_size_per_device": options.batch_size,
        "training.gradient_accumulation_steps": options.accumulation_steps,
        "training.precision": options.precision,
        "training.learning_rate": options.learning_rate,
        "training.min_learning_rate": options.learning_rate,
        "training.warmup_steps": 0,
        "training.num_training_steps": options.warmup_steps + options.steps,
        "training.activation_checkpointing": options.activation_checkpointing,
        "training.attention": options.attention,
        "training.compile": options.compile,
        "infrastructure.seed": options.seed,
        "infrastructure.output_dir": scratch / "checkpoints",
    }
    return load_config(None, [f"{name}={value}" for name, value in settings.items()])


class Stopwatch:
    """Times the steps after the warmup; made once all is imported and before anything is built."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.warmup_steps = options.warmup_steps
        self.last_step = options.warmup_steps + options.steps
        self.device = device
        self.step = 0
        self.seconds = self.cpu_seconds = 0.0
        importlib.import_module(
            "torch._dynamo"
        )  # Otherwise the optimizer would, at the first step.
        self.memory_before = measure_memory(device)

    def tick(self) -> None:
        """Count a finished step; the clock runs between the warmup and the last."""
        self.step += 1
        if self.step not in (self.warmup_steps, self.last_step):
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        sign = 1 if self.step == self.last_step else -1
        self.seconds += sign * time.perf_counter()
        self.cpu_seconds += sign * time.process_time()


def measure_memory(device: torch.device) -> int:
    """The most bytes this process has had: of GPU memory, or resident on a CPU.

    For a child process, getrusage on Linux reports at least what its parent had.
    """
    status = Path("/proc/self/status")
    if device.type == "cuda" or not status.exists():
        return measure_peak_memory(device)
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def describe_round(
    config: Config, options: argparse.Namespace, watch: Stopwatch, losses: list[float]
) -> Json:
    """The figures and the losses of a round."""
    tokens_per_step = options.batch_size * options.accumulation_steps * options.max_seq_length
    num_tokens = options.steps * tokens_per_step
    peak_memory = measure_memory(watch.device)
    figures: Figures = {
        "tokens_per_second": num_tokens / watch.seconds,
        "cpu_seconds_per_million_tokens": watch.cpu_seconds / num_tokens * 1e6,
        "peak_memory_bytes": peak_memory,
        "memory_growth_bytes": peak_memory - watch.memory_before,
    }
    flops_per_token = config.model.flops_per_token(options.max_seq_length)
    figures["flops_per_second"] = figures["tokens_per_second"] * flops_per_token
    peak_flops = find_device_peak(watch.device, config.training.precision)
    causal = config.model.causal_flops_per_token(options.max_seq_length)
    for name, flops in (("mfu", flops_per_token), ("mfu_causal", causal)):
        mfu = compute_mfu(figures["tokens_per_second"], flops, peak_flops)
        if mfu is not None:
            figures[name] = mfu
    return {"figures": figures, "losses": losses}


def measure_velocity(options: argparse.Namespace, scratch: Path) -> Json:
    """Our round."""
    from train.ranks.heap import keep_freed_memory
    from train.take_step import take_step

    with build_benchmark_run(options, scratch) as (run, watch):
        losses = []
        while run.step < run.config.training.num_training_steps:
            losses.append(take_step(run).loss)
            if run.step == 1:
                keep_freed_memory(run.rank.device)
            watch.tick()
    return describe_round(run.config, options, watch, losses)


def measure_bare(options: argparse.Namespace, scratch: Path) -> Json:
    """The round of a loop that does nothing else, on the same model; all windows are in memory.

    It keeps its memory as ours does: what is compared is the loop.
    """
    from train.ranks.heap import keep_freed_memory

    with build_benchmark_run(options, scratch) as (run, watch):
        training, model, optimizer = run.config.training, run.model, run.optimizer
        windows = torch.stack([make_window(w) for w in read_windows(run.config, scratch)])
        steps = windows.to(watch.device).unflatten(
            0, (-1, training.gradient_accumulation_steps, training.batch_size_per_device)
        )
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate
        losses = []
        for step in steps:
            total = torch.zeros((), device=watch.device)
            for batch in step:
                scale = run.scaler.get_scale() / len(step)
                with run.autocast():
                    loss = model(batch[:, :-1], batch[:, 1:], scale)
                run.scaler.scale(loss / len(step)).backward()
                total += loss.detach() / len(step)
            run.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
            run.scaler.step(optimizer)
            run.scaler.update()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(total))
            if len(losses) == 1:
                keep_freed_memory(run.rank.device)
            watch.tick()
    return describe_round(run.config, options, watch, losses)


@contextmanager
def build_benchmark_run(
    options: argparse.Namespace, scratch: Path
) -> Iterator[tuple["Run", Stopwatch]]:
    """A run with the weights that all engines share, and a watch that saw it being built."""
    from train.run import build_run, open_checked_sets
    from train.start.ids import fit_model
    from train.step.kernels import use_kernels

    config = make_config(options, scratch)
    with join_ranks(config.distributed) as rank, use_kernels(config, rank.device) as attention:
        say(f"attention: {attention}")
        watch = Stopwatch(options, rank.device)
        sets = open_checked_sets(config)
        fitted = fit_model(config, sets.first.folder, sets.first.manifest)
        run = build_run(fitted, rank, sets, say)
        load_weights(run.model, scratch)
        try:
            yield run, watch
        finally:
            run.batches.close()


def measure_matrix(options: argparse.Namespace, scratch: Path) -> Json:
    """The FLOP/s of the device in one large product, by the best of several."""
    device = find_device()
    side = 8192 if device.type == "cuda" else 2048
    dtype = DTYPES[options.precision] if device.type == "cuda" else torch.float32
    a, b = torch.rand(2, side, side, device=device).to(dtype)
    fastest = math.inf
    for _ in range(10):
        started = time.perf_counter()
        with torch.no_grad():
            multiply(a, b.T) if device.type == "cpu" else a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - started)
    return {"figures": {"flops_per_second": 2 * side**3 / fastest}, "losses": None}


def find_device() -> torch.device:
    """Where the engines compute."""
    return choose_device(DistributedConfig(), 0, 1)


def load_weights(model: Transformer, scratch: Path) -> None:
    """Replace the weights that this device's generator drew by those that both sides share."""
    weights = load_file(scratch / "weights" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)


def measure_transformers(options: argparse.Namespace, scratch: Path) -> Json:
    """Trainer's round. All windows are in memory before it starts."""
    from transformers import LlamaForCausalLM, PrinterCallback, Trainer

    config = make_config(options, scratch)
    watch = Stopwatch(options, find_device())
    model: Any = LlamaForCausalLM.from_pretrained(scratch / "weights", dtype=torch.float32)
    if options.activation_checkpointing == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    micro_losses: list[torch.Tensor] = []
    trainer = make_ordered(Trainer, micro_losses)(
        model,
        make_trainer_arguments(config, options, watch.device, scratch),
        train_dataset=read_windows(config, scratch),
        callbacks=[make_ticking(watch)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = torch.stack(micro_losses).view(-1, options.accumulation_steps).sum(1)
    return describe_round(config, options, watch, losses.tolist())


def make_ordered(trainer: Any, micro_losses: list[torch.Tensor]) -> Any:
    """A Trainer that keeps the order of the samples and records the losses."""
    from torch.utils.data import SequentialSampler

    class OrderedTrainer(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(train_dataset or self.train_dataset)

        def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
            micro_losses.append(super().training_step(*arguments, **named))
            return micro_losses[-1]

    return OrderedTrainer


def make_ticking(watch: Stopwatch) -> Any:
    """A callback that ticks at the end of each step."""
    from transformers import TrainerCallback

    class Tick(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.tick()

    return Tick()


def make_trainer_arguments(
    config: Config, options: argparse.Namespace, device: torch.device, scratch: Path
) -> Any:
    """Our settings as Trainer's arguments; nothing is logged or saved."""
    from transformers import TrainingArguments

    training, on_gpu = config.training, device.type == "cuda"
    return TrainingArguments(
        output_dir=str(scratch / "trainer"),
        max_steps=training.num_training_steps,
        per_device_train_batch_size=training.batch_size_per_device,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        torch_compile=options.compile,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def make_window(sample: dict[str, torch.Tensor]) -> torch.Tensor:
    """The T + 1 tokens of a sample."""
    return torch.cat([sample["input_ids"], sample["labels"][-1:]])


def read_windows(config: Config, scratch: Path) -> list[dict[str, torch.Tensor]]:
    """The samples of our run, in its order, in the form that Trainer batches.

    Each has T tokens and their T targets; `shift_labels` holds targets that are shifted already.
    """
    stream = open_shards(scratch / "shards").stream("train")
    training = config.training
    order = SampleOrder(stream.num_tokens, config.data.max_seq_length, config.infrastructure.seed)
    num_samples = (
        training.num_training_steps
        * training.gradient_accumulation_steps
        * training.batch_size_per_device
    )
    starts = order.starts(np.arange(num_samples))
    ids = stream.windows(starts, order.max_seq_length + 1)
    windows = torch.from_numpy(ids.astype(np.int64))
    return [
        {"input_ids": window[:-1], "labels": window[1:], "shift_labels": window[1:]}
        for window in windows
    ]
