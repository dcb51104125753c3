"""Which sets of a checkpoint a run reads on, which are new to it, and which it leaves out.

A set is known by its dataset_id; an earlier version of it is the same to a run if every token that
is left kept its place, so that the order of samples is the same.
"""

from dataclasses import replace

from shards.edit.versions import keeps_places
from shards.mixture.sets import MixedOrder, Sets, Source
from shards.screen.lines import Say, format_number
from train.checkpoints.position import Position
from train.checkpoints.resume import Start, is_same_folder

KEEP = "keep it as it was, or choose another infrastructure.output_dir for a new run"


def find_number(source: Source, position: Position) -> int | None:
    """The number that a set has in a run's mixture; None if it is new to the run."""
    shards = source.shards
    for number, dataset_id in enumerate(position.dataset_ids):
        if dataset_id == source.dataset_id:
            return number
        if keeps_places(shards.folder, shards.manifest, dataset_id):
            return number
    return None


def begin_sets(sets: Sets) -> Position:
    """Where a new run on these sets begins."""
    return continue_sets(sets, Position(0, 0, (), ()))


def continue_sets(sets: Sets, position: Position) -> Position:
    """A run's position when it goes on with these sets: each where it was, new ones at their start.

    Those that are left out keep their number, and go on from there if they are named again.
    """
    ids, shares = list(position.dataset_ids), [0] * len(position.dataset_ids)
    for source, share in zip(sets.sources, sets.shares, strict=True):
        number = find_number(source, position)
        if number is None:
            ids.append(source.dataset_id)
            shares.append(share)
        else:
            ids[number], shares[number] = source.dataset_id, share
    mixture = position.mixture.change(position.samples_consumed, shares)
    return replace(position, dataset_ids=tuple(ids), mixture=mixture)


def order_samples(sets: Sets, position: Position) -> MixedOrder:
    """The order of all samples of a run that is at `position` with these sets."""
    numbers = tuple(position.dataset_ids.index(source.dataset_id) for source in sets.sources)
    return MixedOrder(sets, position.mixture, numbers)


def check_sets(sets: Sets, start: Start, say: Say) -> None:
    """Raise ValueError if a run cannot go on from a checkpoint with these sets; tell what changes.

    One of its sets at least must be there, and none may be replaced by another in its folder.
    """
    position = start.position
    numbers = [find_number(source, position) for source in sets.sources]
    current = {number for number, share in enumerate(position.mixture.shares) if share}
    missing = sorted(current - {*numbers})
    if missing == sorted(current):
        raise ValueError(
            f"{start.path}: was trained with dataset_id={position.dataset_ids[missing[0]]}, now it "
            f"is {sets.sources[0].dataset_id}; {KEEP}"
        )
    before = [entry.shards for entry in start.config.data.entries]
    for source, number in zip(sets.sources, numbers, strict=True):
        folder = source.shards.folder
        if number is None and missing and any(is_same_folder(folder, name) for name in before):
            raise ValueError(
                f"{folder}: holds another set (dataset_id {source.dataset_id[:12]}) than when "
                f"{start.path} was written; restore it, or name the new one's own folder in its "
                "place"
            )
        if number is not None and position.dataset_ids[number] != source.dataset_id:
            say(
                f"{folder}: documents were removed since {start.path} was written (dataset_id "
                f"{position.dataset_ids[number][:12]} became {source.dataset_id[:12]}); every "
                "other token kept its place, so the run continues"
            )
    if continue_sets(sets, position).mixture != position.mixture:
        say(describe_change(sets, position, numbers, missing))


def describe_change(
    sets: Sets, position: Position, numbers: list[int | None], missing: list[int]
) -> str:
    """What the run reads from now on, otherwise than before."""
    counts = position.mixture.count(position.samples_consumed)
    texts = [
        f"{text} (" + ("new)" if number is None else f"after {int(counts[number]):,})")
        for text, number in zip(describe_shares(sets), numbers, strict=True)
    ]
    texts += [
        f"no more of dataset_id {position.dataset_ids[number][:12]} (after {int(counts[number]):,})"
        for number in missing
    ]
    return f"data.mixture: after {position.samples_consumed:,} samples: {', '.join(texts)}"


def describe_shares(sets: Sets) -> list[str]:
    """The share of each set in words, such as "70% web"."""
    block = sum(sets.shares)
    return [
        f"{format_number(100 * share / block)}% {name}"
        for name, share in zip(sets.names, sets.shares, strict=True)
    ]
