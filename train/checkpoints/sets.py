"""Which sets of a checkpoint a run reads on, which are new to it, and which it leaves out.

A set is known by its dataset_id; an earlier version of it is the same to a run if every token that
is left kept its place, so that the order of samples is the same.
"""

from dataclasses import replace

from shards.edit.versions import keeps_places
from shards.mixture.sets import MixedOrder, Sets, Source
from shards.screen.lines import Say, format_number
from shards.where.condition import Condition, parse_condition
from train.checkpoints.position import Position, ReadSet, check_same_choice
from train.checkpoints.resume import Start, is_same_folder

KEEP = "keep it as it was, or choose another infrastructure.output_dir for a new run"


def is_same_set(source: Source, known: ReadSet) -> bool:
    """Whether a source is a set that a checkpoint knows, every token left still in its place."""
    shards, dataset_id = source.shards, known.dataset_id
    return dataset_id == source.dataset_id or keeps_places(
        shards.folder, shards.manifest, dataset_id
    )


def find_number(source: Source, position: Position) -> int | None:
    """The number that a source has in a run's mixture; None if it is new to the run."""
    for number, known in enumerate(position.sets):
        if known.chosen == source.choice.counts and is_same_set(source, known):
            return number
    return None


def begin_sets(sets: Sets) -> Position:
    """Where a new run on these sets begins."""
    return continue_sets(sets, Position(0, 0, (), ()))


def continue_sets(sets: Sets, position: Position) -> Position:
    """A run's position when it goes on with these sets: each where it was, new ones at their start.

    Those that are left out keep their number, and go on from there if they are named again.
    """
    known, shares = list(position.sets), [0] * len(position.sets)
    for source, share in zip(sets.sources, sets.shares, strict=True):
        number = find_number(source, position)
        if number is None:
            known.append(describe_source(source))
            shares.append(share)
        else:
            known[number], shares[number] = describe_source(source), share
    mixture = position.mixture.change(position.samples_consumed, shares)
    return replace(position, sets=tuple(known), mixture=mixture)


def describe_source(source: Source) -> ReadSet:
    """What a checkpoint keeps of a set."""
    return ReadSet(source.dataset_id, source.choice.where, source.choice.counts)


def order_samples(sets: Sets, position: Position) -> MixedOrder:
    """The order of all samples of a run that is at `position` with these sets."""
    numbers = tuple(position.sets.index(describe_source(source)) for source in sets.sources)
    return MixedOrder(sets, position.mixture, numbers)


def check_sets(sets: Sets, start: Start, say: Say) -> None:
    """Raise ValueError if a run cannot go on from a checkpoint with these sets; tell what changes.

    One of its sets at least must be there, and none may be replaced by another in its folder.
    """
    position = start.position
    numbers = [find_number(source, position) for source in sets.sources]
    current = {number for number, share in enumerate(position.mixture.shares) if share}
    missing = sorted(current - {*numbers})
    refuse_other_choice(sets, start, missing)
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


def refuse_other_choice(sets: Sets, start: Start, missing: list[int]) -> None:
    """ValueError if a set of which a run does not read on is there, but other documents of it."""
    position = start.position
    for source in sets.sources:
        if find_number(source, position) is not None:
            continue
        for known in (position.sets[number] for number in missing):
            if not is_same_set(source, known):
                continue
            was, now = known.where, source.choice.where
            if read_where(was) != read_where(now):
                raise ValueError(
                    f"{start.path}: was trained with data.where={was or 'null'}, now it is "
                    f"{now or 'null'}, so the order of samples would be another one; {KEEP}"
                )
            check_same_choice(source.choice, known, start.path)


def read_where(where: str | None) -> Condition | None:
    """What data.where means, however it is spelled."""
    return None if where is None else parse_condition(where)


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
