"""Going back from a bad step to a checkpoint of before, and past the samples since.

Losses rise some steps after what made them rise, so the checkpoint has to be some steps older than
the bad step: training.spike_window of them. The run goes on from there as a function of the step,
its learning rate too, but with other samples: those since the checkpoint are passed over, which its
history then says ("PaLM", Chowdhery et al. 2022, section 5.1, did so by hand, with success).

Nothing is written but the log. A run that is killed before its next checkpoint does the same steps
from the same checkpoint again, meets the same loss, and decides alike, unless a save has failed the
one time and not the other.
"""

from functools import partial
from pathlib import Path

from model.checkpoints.seal import CheckpointError, list_checkpoints
from train.checkpoints.folder import step_of
from train.checkpoints.history import extend_history
from train.checkpoints.load import load_tensors
from train.checkpoints.position import parse_position
from train.checkpoints.resume import read_state, verify_training_checkpoint
from train.checkpoints.state import restore_parts
from train.ranks.exchange import share_json
from train.run import Run
from train.step.loss_scale import fit_scaler


def go_back(run: Run) -> int | None:
    """Set a run back to its newest good checkpoint; the step of it, None if there is none.

    All ranks call this together, after the step that is bad.
    """
    run.saver.wait()
    checkpoint = load_good_checkpoint(run)
    if checkpoint is None:
        return None
    bad_steps = run.bad_steps
    kept = {
        "bad": bad_steps.bad,
        "rollbacks": bad_steps.rollbacks + 1,
        "furthest_bad": max(bad_steps.furthest_bad, run.step),
    }
    state = share_json(run.rank, run.rank.is_first and read_state(checkpoint)[0])
    position = parse_position(state)
    restore_parts(state, run.parts)
    fit_scaler(run.scaler, run.config.training)
    bad_steps.load_state_dict(kept)
    # The samples just go on.
    next_sample, dealing = run.batches.consumed, run.find_dealing(position.step)
    run.batches.deal_next(dealing)
    run.history = extend_history(
        position.history, position.step, next_sample, dealing.samples_per_step
    )
    run.step = position.step
    run.saver.go_back(checkpoint, run.step)
    return run.step


def load_good_checkpoint(run: Run) -> Path | None:
    """Load the tensors of the newest checkpoint from before the bad stretch; None if it has none.

    Once tensors were read there is no way back: if then all are damaged, CheckpointError.
    """
    faults: dict[int, str] = {}
    while step := run.rank.max(run.rank.do_first(partial(find_good, run, faults)) or 0):
        checkpoint = run.saver.folder / f"checkpoint-{step}"
        fault = load_tensors(checkpoint, run.rank, run.model, run.optimizer)
        if fault is None:
            return checkpoint
        faults[step] = fault
    for fault in faults.values():
        raise CheckpointError(f"{fault}; there is no other checkpoint to go back to")
    return None


def find_good(run: Run, faults: dict[int, str]) -> int:
    """The step of the newest checkpoint that is old enough and whole, as far as is known; or 0.

    Those of a stop are left out: a run has them or not, and its weights must not depend on that.
    """
    training = run.config.training
    for checkpoint in list_checkpoints(run.saver.folder):
        step = step_of(checkpoint)
        is_old = step <= run.step - training.spike_window
        if is_old and step % training.save_steps == 0 and step not in faults:
            try:
                verify_training_checkpoint(checkpoint)
            except CheckpointError:
                continue
            return step
    return 0
