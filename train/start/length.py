"""How far a run goes, in words: the tokens of a step, and how often it sees those of its set.

For its start and for its plan, so torch is not loaded.
"""

from collections.abc import Mapping

from shards.screen.lines import format_number, format_plural
from train.config import Config


def describe_step(config: Config, num_ranks: int) -> str:
    """How many tokens a step takes, and how they come about."""
    training, length = config.training, config.data.max_seq_length
    samples = config.samples_per_step(num_ranks)
    # Where they do not divide evenly, some micro-batches have a sample less.
    up_to = "up to " if samples % (training.micro_steps * num_ranks) else ""
    factors = f"{up_to}{format_plural(training.micro_batch, 'sample')} of {length:,}"
    if training.micro_steps > 1:
        factors += f" x {training.micro_steps:,} micro-steps"
    if num_ranks > 1:
        factors += f" x {num_ranks:,} ranks"
    text = f"{samples * length:,} tokens ({factors})"
    [(_, fewest), *_] = config.list_batches(num_ranks)
    if fewest == samples:
        return text
    steps = training.batch_warmup_steps
    return f"{text} from step {steps + 1:,} on; they double up to there from {fewest * length:,}"


def describe_all_epochs(epochs: Mapping[str, float], is_choice: bool = False) -> str:
    """How often a run sees each token of its sets; they are named where there are several.

    >>> describe_all_epochs({"web": 0.25})
    '0.25 epochs: a part of the set, once'
    >>> describe_all_epochs({"web": 0.4, "code": 1})
    'web: 0.4 epochs, code: 1 epoch'
    """
    if len(epochs) == 1:
        [number] = epochs.values()
        return describe_epochs(number, is_choice)
    told = {name: describe_epochs(number).partition(":")[0] for name, number in epochs.items()}
    return ", ".join(f"{name}: {text}" for name, text in told.items())


def describe_epochs(epochs: float, is_choice: bool = False) -> str:
    """How often a run sees each token of its set, or of the documents chosen from it.

    >>> describe_epochs(0.25), describe_epochs(1.5)
    ('0.25 epochs: a part of the set, once', '1.5 epochs: each token of the set 1.5 times')
    >>> describe_epochs(0.99999), describe_epochs(7e-8)
    ('1 epoch: each token of the set once', 'under 0.0001 epochs: a part of the set, once')
    """
    number, what = format_number(epochs), "the documents chosen" if is_choice else "the set"
    if number == "1":
        return f"1 epoch: each token of {what} once"
    if epochs < 1:
        return f"{'under 0.0001' if epochs < 1e-4 else number} epochs: a part of {what}, once"
    return f"{number} epochs: each token of {what} {number} times"
