"""What section `training` of the settings refuses: numbers out of bounds, and contradictions."""

import math
from typing import Any

# Where torch's GradScaler begins.
FIRST_LOSS_SCALE = 2.0**16
# More than any run has; all that is computed from it stays within 64 bits.
MAX_STEPS = 10**9
# From one token to more than a step may have.
MAX_DOUBLINGS = 30
# Losses are kept in every checkpoint, and gone through at each step.
MAX_SPIKE_WINDOW = 10_000


def check_training(training: Any) -> None:
    """Raise ValueError for what a TrainingConfig cannot have, naming the setting."""
    at_least_one = (
        "batch_size_per_device",
        "gradient_accumulation_steps",
        "cycle_multiplier",
        "batch_warmup_doublings",
        "num_training_steps",
        "max_skipped_steps",
        "loss_scale_growth_interval",
        "max_rollbacks",
        "logging_steps",
        "progress_steps",
        "save_steps",
        "eval_steps",
        "save_total_limit",
    )
    for name in at_least_one:
        value = getattr(training, name)
        if value != "auto" and value < 1:
            raise ValueError(f"training.{name} is {value}; expected at least 1")
    for name, most in (
        ("num_training_steps", MAX_STEPS),
        ("batch_warmup_steps", MAX_STEPS),
        ("batch_warmup_doublings", MAX_DOUBLINGS),
    ):
        if getattr(training, name) > most:
            raise ValueError(
                f"training.{name} is {getattr(training, name)}; expected at most {most:,}"
            )
    if training.epochs is not None and not 0 < training.epochs <= MAX_STEPS:
        raise ValueError(f"training.epochs is {training.epochs}; expected a number above 0")
    check_saving(training)
    check_adapter(training)
    check_schedule(training)
    for name in (
        "warmup_steps",
        "batch_warmup_steps",
        "eval_windows",
        "eval_task_shots",
        "weight_decay",
        "z_loss",
    ):
        if getattr(training, name) < 0:
            raise ValueError(f"training.{name} is {getattr(training, name)}; expected at least 0")
    for name in ("max_grad_norm", "adam_epsilon", "dpo_beta"):
        if not getattr(training, name) > 0:
            raise ValueError(
                f"training.{name} is {getattr(training, name)}; expected a number above 0"
            )
    if not 0 <= training.activation_memory_budget <= 1:
        raise ValueError(
            f"training.activation_memory_budget is {training.activation_memory_budget}; expected a "
            "number from 0 to 1"
        )
    check_bad_steps(training)
    for name in ("adam_beta1", "adam_beta2", "muon_momentum"):
        if not 0 <= getattr(training, name) < 1:
            raise ValueError(
                f"training.{name} is {getattr(training, name)}; expected a number from 0 to below 1"
            )


def check_adapter(training: Any) -> None:
    """Raise ValueError for the size of an adapter, and for what it cannot be trained with."""
    if training.adapter_rank < 1:
        raise ValueError(f"training.adapter_rank is {training.adapter_rank}; expected at least 1")
    if not 0 < training.adapter_alpha < math.inf:
        raise ValueError(
            f"training.adapter_alpha is {training.adapter_alpha}; expected a number above 0"
        )
    if training.adapter is not None and training.optimizer == "muon":
        raise ValueError(
            f"training.optimizer is muon, which is for whole matrices; with training.adapter="
            f"{training.adapter}, set training.optimizer=adamw"
        )


def check_saving(training: Any) -> None:
    """Raise ValueError for what is saved, and how often."""
    for name in ("keep_every_steps", "sample_steps", "eval_task_steps"):
        value = getattr(training, name)
        if value is not None and value < 1:
            raise ValueError(f"training.{name} is {value}; expected at least 1")
    if training.stop_seconds is not None and not training.stop_seconds >= 0:
        raise ValueError(f"training.stop_seconds is {training.stop_seconds}; expected at least 0")
    if training.eval_sets and training.eval_windows == 0:
        raise ValueError("training.eval_sets needs training.eval_windows, which is 0; raise it")
    if training.keep_best and training.eval_windows == 0:
        raise ValueError(
            "training.keep_best goes by the validation loss, which training.eval_windows=0 "
            "does not take; set one of them otherwise"
        )


def check_schedule(training: Any) -> None:
    """Raise ValueError for what the learning rate goes by."""
    if training.cycle_steps is not None and training.cycle_steps < 1:
        raise ValueError(f"training.cycle_steps is {training.cycle_steps}; expected at least 1")
    lowest, peak = training.min_learning_rate, training.learning_rate
    if not lowest >= 0 or (training.schedule == "cosine_restarts" and lowest > peak):
        raise ValueError(
            f"training.min_learning_rate is {lowest}; expected a number from 0 to "
            f"training.learning_rate={peak}"
        )
    if not peak >= 0:
        raise ValueError(f"training.learning_rate is {peak}; expected at least 0")
    if training.muon_learning_rate is not None and not training.muon_learning_rate >= 0:
        raise ValueError(
            f"training.muon_learning_rate is {training.muon_learning_rate}; expected at least 0"
        )
    for name in ("decay_fraction", "final_fraction"):
        value = getattr(training, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"training.{name} is {value}; expected a number from 0 to 1")


def check_bad_steps(training: Any) -> None:
    """Raise ValueError for what is done about bad steps."""
    if not 0 <= training.min_loss_scale <= FIRST_LOSS_SCALE:
        raise ValueError(
            f"training.min_loss_scale is {training.min_loss_scale}; expected a number from 0 to "
            f"{FIRST_LOSS_SCALE:g}, where the loss scale begins"
        )
    if not 2 <= training.spike_window <= MAX_SPIKE_WINDOW:
        raise ValueError(
            f"training.spike_window is {training.spike_window}; expected 2 to {MAX_SPIKE_WINDOW:,}"
        )
    if training.spike_threshold is not None and not training.spike_threshold > 0:
        raise ValueError(
            f"training.spike_threshold is {training.spike_threshold}; expected a number above 0, "
            "or null"
        )
    if training.on_bad_step == "rollback" and training.max_skipped_steps == 1:
        raise ValueError(
            "training.max_skipped_steps=1 ends a run at its first bad step, where "
            "training.on_bad_step=rollback would go back; set at least 2"
        )
    oldest = training.save_steps * (training.save_total_limit - 1)
    if training.on_bad_step == "rollback" and oldest < training.spike_window:
        raise ValueError(
            f"training.on_bad_step=rollback needs a checkpoint from before the "
            f"{training.spike_window} steps of training.spike_window; of training.save_steps="
            f"{training.save_steps} x training.save_total_limit={training.save_total_limit} the "
            f"oldest is {oldest} steps old just after a save; set more of one of the two"
        )


def check_dpo(training: Any) -> None:
    """Raise ValueError for settings with which DPO would learn nothing."""
    if not 0 <= training.dpo_label_smoothing < 0.5:
        raise ValueError(
            f"training.dpo_label_smoothing is {training.dpo_label_smoothing}; expected a number "
            "from 0 to below 0.5, at which preferences would mean nothing"
        )
    if training.objective == "dpo" and training.z_loss:
        raise ValueError(
            f"training.z_loss={training.z_loss} is for training.objective=likelihood; leave it at 0"
        )
