"""Section `training` of the settings: optimization, memory, bad steps, saving, logging."""

from dataclasses import dataclass
from typing import Literal

from model.adapters.config import TARGETS, AdapterConfig, Kind, check_targets
from model.config import AttentionKernel
from train.words.bounds import FIRST_LOSS_SCALE as FIRST_LOSS_SCALE  # For the loss scale.
from train.words.bounds import check_dpo, check_training

Precision = Literal["fp16", "bf16", "fp32"]
OnBadStep = Literal["warn", "skip", "rollback"]
OptimizerName = Literal["adamw", "muon"]
Schedule = Literal["cosine_restarts", "cosine", "linear_to_zero", "wsd", "constant"]
Objective = Literal["likelihood", "dpo"]
ActivationCheckpointing = Literal["none", "selective", "full", "auto"]

# Micro-steps of a step whose settings name neither them nor its tokens, as in the original.
DEFAULT_MICRO_STEPS = 8


@dataclass(frozen=True)
class TrainingConfig:
    """Section `training`: optimization, and how often to log, save and evaluate."""

    # Tokens per step over all ranks, whatever their number; null = batch x accumulation x ranks
    # samples.
    global_batch_tokens: int | None = None
    # Steps in which a step's tokens double again and again up to the full number, in stages of
    # equal length; 0 = all steps have it.
    batch_warmup_steps: int = 0
    # How often they double in batch_warmup_steps: the first step has 1/2 of them, 1/4, 1/8, ...
    batch_warmup_doublings: int = 3
    # Samples per micro-step on each rank, at most; "auto" = as many as fit, with
    # global_batch_tokens.
    batch_size_per_device: int | Literal["auto"] = 4
    # Micro-steps per step; "auto" = as many as global_batch_tokens needs, or 8 without it.
    gradient_accumulation_steps: int | Literal["auto"] = "auto"
    # Peak learning rate.
    learning_rate: float = 6e-4
    # What the learning rate does after warmup: "cosine_restarts" = the original's cycles; "cosine"
    # and "linear_to_zero" = it falls until the last step; "wsd" (warmup, stable, decay) = it stays
    # at the peak and falls linearly at the end; "constant" = it stays.
    schedule: Schedule = "cosine_restarts"
    # Steps of linear warmup from 0 to the peak.
    warmup_steps: int = 2000
    # For wsd: the share of num_training_steps in which the learning rate falls, at the end.
    decay_fraction: float = 0.2
    # For cosine and wsd: what the learning rate falls to, as a share of the peak; null = 0.1 for
    # cosine, 0 for wsd.
    final_fraction: float | None = None
    # For cosine_restarts: the lowest learning rate of the cycles.
    min_learning_rate: float = 6e-5
    # For cosine_restarts: steps of the first cycle after warmup; null = three cycles fill
    # num_training_steps.
    cycle_steps: int | None = None
    # For cosine_restarts: each cycle is this many times as long as the one before.
    cycle_multiplier: int = 2
    # Steps in the whole run.
    num_training_steps: int = 100_000
    # How often the run reads its set, in place of num_training_steps: 1 = each token once, with a
    # last step that reads on into the next epoch, and a warmup of at most a tenth of the steps;
    # null = by num_training_steps.
    epochs: float | None = None
    # What makes updates of gradients: "adamw", or "muon" for the matrices of the blocks and AdamW
    # for embeddings, head and norms.
    optimizer: OptimizerName = "adamw"
    # Peak learning rate of the matrices that Muon updates; null = learning_rate, as Muon's updates
    # are made as large as AdamW's.
    muon_learning_rate: float | None = None
    # Train an adapter on the model of model.start, which stays as it is: "lora", or "dora", which
    # also learns how long the rows of each matrix are; null = train the model itself. Checkpoints
    # hold the adapter alone.
    adapter: Kind | None = None
    # The rank of the adapter's matrices: how much it can learn, and how large it is.
    adapter_rank: int = 8
    # What the adapter's product is multiplied by, times its rank.
    adapter_alpha: float = 16.0
    # The linear layers of a block that have an adapter, such as q_proj,v_proj; none = all: q_proj,
    # k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
    adapter_targets: tuple[str, ...] = ()
    # Muon's decay rate for the mean gradient.
    muon_momentum: float = 0.95
    # Weight decay of matrices and embeddings; norms have none.
    weight_decay: float = 0.1
    # Whether the embedding decays, and with it a head that is the same.
    decay_embeddings: bool = True
    # z_loss times the mean square of log(sum(exp(logits))) is added to what is minimized, which
    # keeps logits from drifting; it is logged apart from the loss. 0 = none; 1e-4 or 1e-5 is usual.
    z_loss: float = 0.0
    # What is learned: "likelihood" = to predict the next token; "dpo" = which of two answers is
    # preferred, by direct preference optimization, of a set of preferences.
    objective: Objective = "likelihood"
    # For dpo: beta. The larger it is, the closer the model stays to the one that it began with.
    dpo_beta: float = 0.1
    # For dpo: the share of pairs whose preference is taken to be wrong.
    dpo_label_smoothing: float = 0.0
    # AdamW's decay rate for the mean gradient.
    adam_beta1: float = 0.9
    # AdamW's decay rate for the mean squared gradient.
    adam_beta2: float = 0.95
    # Added to AdamW's denominator.
    adam_epsilon: float = 1e-8
    # Gradients are clipped to this global norm.
    max_grad_norm: float = 1.0
    # fp16 with dynamic loss scaling, bf16, or fp32; weights and optimizer state are always fp32.
    precision: Precision = "fp16"
    # The fp16 loss scale is never halved below this; an overflow there still skips the step.
    min_loss_scale: float = 1.0
    # Steps without an overflow after which the fp16 loss scale is doubled.
    loss_scale_growth_interval: int = 2000
    # Stop with a report after this many steps in a row that were not applied to the weights.
    max_skipped_steps: int = 50
    # What to do about a step with a bad loss, one that is not finite or a spike: "warn" = say so;
    # "skip" = also leave the weights as they are; "rollback" = go back to the newest checkpoint
    # that is spike_window steps older, and pass over all samples since.
    on_bad_step: OnBadStep = "warn"
    # A loss is compared with as many before it; half of them are enough.
    spike_window: int = 128
    # A loss is a spike this many standard deviations above the mean of the window; null = never.
    spike_threshold: float | None = 6.0
    # Stop with a report after this many rollbacks without getting beyond the bad step.
    max_rollbacks: int = 3
    # Log the largest |x| of the residual stream behind the blocks, at steps that are logged.
    log_activations: bool = False
    # What blocks compute again in the backward pass, to save memory: none; selective = what is
    # cheap (compiled: what activation_memory_budget leaves out); full = all; auto = as little as
    # the memory allows. The original's gradient_checkpointing: true is full, false none.
    activation_checkpointing: ActivationCheckpointing = "full"
    # With selective and compiled blocks: the share of the activations to keep, from 0 to 1.
    activation_memory_budget: float = 0.5
    # What computes attention: auto = on Hopper GPUs FlashAttention 3 where flash_attn_interface is
    # installed, else cuDNN, elsewhere torch's choice; the run says which it is.
    attention: AttentionKernel = "auto"
    # Run torch.compile on each block; null = on GPUs only.
    compile: bool | None = None
    # Steps between log entries.
    logging_steps: int = 10
    # Steps between progress lines that stay on a terminal; a file has one for each log entry.
    progress_steps: int = 100
    # Steps between checkpoints.
    save_steps: int = 1000
    # Steps between evaluations of the validation loss.
    eval_steps: int = 500
    # Windows of the validation split used for the validation loss.
    eval_windows: int = 256
    # Sets whose loss is taken as often, over eval_windows windows of the validation split of each,
    # or of its train split where it has none: a list of folders, or of name: folder.
    eval_sets: tuple[str, ...] = ()
    # Files of tasks that the model is given on its way, as velocity eval --task takes them: a list
    # of files, or of name: file.
    eval_tasks: tuple[str, ...] = ()
    # Steps between those; null = eval_steps.
    eval_task_steps: int | None = None
    # Items of a task's own file, with their right answers, before each item: the first ones.
    eval_task_shots: int = 0
    # Steps between texts that the model writes into samples.jsonl of the log; null = none.
    sample_steps: int | None = None
    # A file with a prompt for such a text on each line, an empty one for the beginning of a
    # document; null = four built-in ones.
    sample_prompts: str | None = None
    # Checkpoints to keep; the oldest are removed.
    save_total_limit: int = 5
    # Steps between checkpoints that are never removed, saved besides the others; null = none.
    keep_every_steps: int | None = None
    # Never remove the checkpoint with the lowest validation loss, of those saved at a step at which
    # it is taken.
    keep_best: bool = False
    # Seconds that a stop signal leaves: a save that is known to take longer is not begun; null = as
    # long as it takes.
    stop_seconds: float | None = None

    def __post_init__(self) -> None:
        check_training(self)
        check_dpo(self)
        check_targets(self.adapter_targets or TARGETS, "training.adapter_targets")

    def make_adapter(self, token_ids: tuple[int, ...] = ()) -> AdapterConfig | None:
        """The adapter that is trained, if one is; with rows of its own for these tokens."""
        if self.adapter is None:
            return None
        targets = tuple(t for t in TARGETS if t in (self.adapter_targets or TARGETS))
        shape = self.adapter, self.adapter_rank, self.adapter_alpha, targets
        return AdapterConfig(*shape, token_ids=token_ids)

    @property
    def micro_batch(self) -> int:
        """Samples per micro-step on a rank, as a number, once it is settled."""
        assert self.batch_size_per_device != "auto", "train/start/settle.py has not chosen it"
        return self.batch_size_per_device

    @property
    def micro_steps(self) -> int:
        """Micro-steps per step, as a number; with global_batch_tokens, once they are settled."""
        if self.gradient_accumulation_steps != "auto":
            return self.gradient_accumulation_steps
        assert self.global_batch_tokens is None, "train/start/batch.py has not settled them"
        return DEFAULT_MICRO_STEPS

    @property
    def relative_muon_rate(self) -> float:
        """Muon's learning rate by AdamW's, at every step."""
        if self.muon_learning_rate is None or self.learning_rate == 0:
            return 1.0
        return self.muon_learning_rate / self.learning_rate

    @property
    def decay_start(self) -> int:
        """Steps before the learning rate falls for good; all of them if it never does.

        With cosine_restarts, which goes up again, those of warmup.
        """
        if self.schedule == "constant":
            return self.num_training_steps
        stable = 0
        if self.schedule == "wsd":
            stable = self.num_training_steps - round(self.decay_fraction * self.num_training_steps)
        return min(max(self.warmup_steps, stable), self.num_training_steps)

    def is_permanent(self, step: int) -> bool:
        """Whether the checkpoint of a step is never removed.

        That of the step from which wsd falls is one: from there the run can be made longer.
        """
        if self.schedule == "wsd" and step == self.decay_start:
            return True
        return self.keep_every_steps is not None and step % self.keep_every_steps == 0

    @property
    def max_checkpoints(self) -> int:
        """The most checkpoints that a run keeps: the newest, the permanent ones, and the best."""
        permanent = self.num_training_steps // self.keep_every_steps if self.keep_every_steps else 0
        has_stable = self.schedule == "wsd" and 0 < self.decay_start < self.num_training_steps
        return self.save_total_limit + permanent + has_stable + self.keep_best
