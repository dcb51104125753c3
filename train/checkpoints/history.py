"""Which samples a step saw, even where the number of ranks or the batch changed midway.

A run's history is a list of stretches; each starts at a step and a sample and takes a fixed number
of samples per step. It is kept in every checkpoint, and is all that `velocity shards trace` needs.
Samples between two stretches were passed over: the run went back from a bad step, and beyond them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stretch:
    """Steps from `first_step` on take `samples_per_step` each, starting at `first_sample`."""

    first_step: int
    first_sample: int
    samples_per_step: int


History = tuple[Stretch, ...]


def extend_history(history: History, step: int, sample: int, samples_per_step: int) -> History:
    """The history of a run that goes on at `step` and `sample`.

    >>> history = extend_history((), 0, 0, 32)
    >>> extend_history(history, 10, 320, 32) == history
    True
    >>> extend_history(history, 10, 320, 64)[-1]
    Stretch(first_step=10, first_sample=320, samples_per_step=64)

    A run at step 15 that goes back to step 10, and passes over what it saw since:

    >>> extend_history(history, 10, 480, 32)[-1]
    Stretch(first_step=10, first_sample=480, samples_per_step=32)
    """
    kept = tuple(stretch for stretch in history if stretch.first_step < step)
    if kept and samples_of_step(kept, step) == range(sample, sample + samples_per_step):
        return kept
    return (*kept, Stretch(step, sample, samples_per_step))


def plan_history(batches: list[tuple[int, int]]) -> History:
    """The history of a run that will take, from each step on, so many samples a step.

    >>> plan_history([(0, 16), (50, 32)])[-1]
    Stretch(first_step=50, first_sample=800, samples_per_step=32)
    """
    history: History = ()
    for step, samples in batches:
        first = samples_of_step(history, step).start if history else 0
        history = extend_history(history, step, first, samples)
    return history


def samples_of_step(history: History, step: int) -> range:
    """The samples that step number `step` sees, counted from 0.

    >>> samples_of_step((Stretch(0, 0, 32), Stretch(10, 320, 64)), 11)
    range(384, 448)
    """
    stretch = [entry for entry in history if entry.first_step <= step][-1]
    first = stretch.first_sample + (step - stretch.first_step) * stretch.samples_per_step
    return range(first, first + stretch.samples_per_step)


def step_of_sample(history: History, sample: int) -> int | None:
    """The step that sees a sample, None if it is passed over; the inverse of `samples_of_step`.

    >>> step_of_sample((Stretch(0, 0, 32), Stretch(10, 320, 64)), 400)
    11
    >>> step_of_sample((Stretch(0, 0, 32), Stretch(10, 480, 32)), 400) is None
    True
    """
    stretch = [entry for entry in history if entry.first_sample <= sample][-1]
    step = stretch.first_step + (sample - stretch.first_sample) // stretch.samples_per_step
    return step if sample in samples_of_step(history, step) else None
