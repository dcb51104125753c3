"""transformers' Trainer as an engine of `benchmarks.train`."""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Json
from benchmarks.train.inputs import find_device, make_config, read_windows
from benchmarks.train.round import Stopwatch, describe_round
from train.config import Config


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
