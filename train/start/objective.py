"""What a run is to learn, and whether its sets and its beginning are such that it can."""

from typing import TYPE_CHECKING

from shards.schema import PREFERENCES
from train.config import Config

if TYPE_CHECKING:
    from shards.mixture.sets import Sets  # Which loads pyarrow, and `velocity plan` does not.

OBJECTIVE = "training.objective"


def check_objective(config: Config, sets: "Sets") -> None:
    """Raise ValueError unless each of a run's sets has what training.objective learns from."""
    learns_pairs = config.training.objective == "dpo"
    for source in sets.sources:
        folder, chat = source.shards.folder, source.shards.manifest.chat
        kind = chat["kind"] if chat else "plain text"
        if learns_pairs and kind != PREFERENCES:
            raise ValueError(
                f"{folder}: has {kind}, but {OBJECTIVE}=dpo needs pairs of a chosen and a rejected "
                f"answer; prepare such a set with velocity prep --chat, or set "
                f"{OBJECTIVE}=likelihood"
            )
        if not learns_pairs and kind == PREFERENCES:
            raise ValueError(
                f"{folder}: has {kind}, and {OBJECTIVE}={config.training.objective} would learn "
                f"the rejected answers too; set {OBJECTIVE}=dpo"
            )
    if learns_pairs and config.model.start is None:
        raise ValueError(
            f"{OBJECTIVE}=dpo compares with the model that the run starts from; set model.start to "
            f"a model that answers, such as a fine-tuned checkpoint"
        )


def describe_objective(config: Config) -> dict[str, str]:
    """How preferences are learned, with its label; nothing for a run that learns none."""
    training = config.training
    if training.objective != "dpo":
        return {}
    smoothing = training.dpo_label_smoothing
    share = f", {smoothing:.1%} of the preferences taken to be wrong" if smoothing else ""
    text = f"DPO, beta {training.dpo_beta:g}{share}; the reference is {config.model.start}"
    return {"objective": text}
