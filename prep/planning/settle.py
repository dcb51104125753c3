"""The plan of a folder: made, or found and compared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from prep.chat.template import choose_template, pin_template
from prep.planning.plan import (
    Plan,
    plan_hub_dataset,
    plan_inputs,
    read_plan,
    stored_at_urls,
    stored_hub_dataset,
)
from prep.planning.subset import choose_sample, sample_dataset
from prep.planning.tokenizer import choose_tokenizer, describe_tokenizers, write_beside
from prep.remote.hub import resolve
from prep.remote.hub_files import HubDataset
from prep.remote.pinned import RemoteFile
from prep.remote.places import describe_places, find_remote, name_places, part_inputs
from prep.request import Request
from prep.text.contained import pin_contained, write_passages
from prep.text.filters import make_filter
from prep.tokenizer.identity import SetTokenizer, restore_tokenizer
from prep.units.workspace import hold_plan, write_first
from shards.disk.durable import write_file
from shards.disk.json_files import Json, hash_canonical
from shards.disk.layout import (
    CHAT_TEMPLATE,
    MANIFEST,
    TOKENIZER,
    VERSIONS,
    plan_path,
    receipts_folder,
    temporary_folder,
    work_folder,
)
from shards.screen.lines import Say


def share_plan(request: Request, say: Say) -> Plan:
    """The plan of all parts: the first makes it, the others wait for it and compare."""
    path = plan_path(request.out)
    if not path.exists():
        with hold_plan(request.out):
            if not path.exists():
                return settle_plan(request, say)
    return settle_plan(request, say)


def settle_plan(request: Request, say: Say) -> Plan:
    """The plan of this folder: the stored one if the request still means it, else a new one."""
    make_filter(request.policy)  # Refuses a bad expression before the plan is made.
    refuse_lost_version(request.out)
    request = replace(request, policy=pin_contained(request.policy))
    write_passages(request.policy, request.out, say)
    path = plan_path(request.out)
    # A plan under which nothing was done yet binds nobody: the next command may fix its options.
    # But a part's plan may also be that of another part, which is about to start.
    binds = request.part is not None or has_begun(request.out)
    stored = read_plan(path)[0] if path.exists() and binds else None
    template = choose_template(request) if request.policy.chat else None
    specials = template.specials if template else ()
    text, tokenizer = choose_tokenizer(request, stored, say, specials)
    if template is not None:
        policy = pin_template(request.policy, template, text, tokenizer)
        request = replace(request, policy=policy)
    plan = make_plan(request, tokenizer, stored, say)
    if stored is not None and plan.plan_id != hash_canonical(stored):
        refuse_other_plan(request.out, stored, plan)
    if stored is None:
        refuse_foreign_files(request.out)
    write_beside(request.out, TOKENIZER, text)
    if template is not None:
        write_beside(request.out, CHAT_TEMPLATE, template.source)
    if stored is None:
        content = json.dumps({"plan_id": plan.plan_id, "content": plan.content}) + "\n"
        if request.part is None:
            write_file(path, content)
        elif not write_first(path, content, temporary_folder(request.out)):
            return settle_plan(request, say)  # Locks did not hold, and another part was faster.
    return plan


def refuse_lost_version(out: Path) -> None:
    """Refuse to remake the first version after others: what was removed would come back."""
    if (out / VERSIONS).is_dir() and not (out / MANIFEST).exists():
        raise ValueError(
            f"{out}: has several versions but no {MANIFEST}; copy the newest of {out / VERSIONS} "
            "there (or choose another --out), because prep would bring back what was removed"
        )


def has_begun(out: Path) -> bool:
    """Whether anything was done under the plan of this folder."""
    return any(receipts_folder(out).iterdir()) or (out / MANIFEST).exists()


def refuse_other_plan(out: Path, stored: Json, plan: Plan) -> NoReturn:
    """ValueError saying how the requested plan differs from the stored one."""
    state = "a finished" if (out / MANIFEST).exists() else "an unfinished"
    wanted = json.loads(json.dumps(plan.content))
    remove = ""
    if not has_begun(out):
        remove = f", or remove {plan_path(out)}, as nothing was done under it"
    raise ValueError(
        f"{out}: holds {state} set made with another plan: "
        f"{describe_difference(stored, wanted)}; run the command it was made with, "
        f"or choose another --out{remove}"
    )


def make_plan(request: Request, tokenizer: SetTokenizer, stored: Json | None, say: Say) -> Plan:
    """What the request means now; what was pinned elsewhere stays so, and is not listed again."""
    if request.inputs:
        at_urls = find_pinned(request, stored, say)
        return plan_inputs(request.inputs, request.policy, tokenizer, say, at_urls, request.split)
    dataset = stored_hub_dataset(stored) if stored else None
    if dataset is None or not is_requested(dataset, request):
        say(f"asking the Hub for the files of {request.dataset}")
        found = resolve(
            request.dataset,
            request.dataset_config,
            request.split,
            request.revision,
            say=say,
            data_files=request.data_files,
        )
        dataset = sample_dataset(found, request.policy.sample)
    return plan_hub_dataset(dataset, request.policy, tokenizer)


def find_pinned(request: Request, stored: Json | None, say: Say) -> tuple[RemoteFile, ...]:
    """The files at the URLs of --input: those of the stored plan, if it is for the same URLs."""
    urls = part_inputs(request.inputs)[1]
    if not urls:
        return ()
    found = stored_at_urls(stored, urls) if stored else None
    if found is None:
        say(f"asking for the files at {describe_places(name_places(urls))}")
        found = tuple(choose_sample(find_remote(urls, say), request.policy.sample))
    return found


def is_requested(dataset: HubDataset, request: Request) -> bool:
    """Whether a pinned dataset is the one that the request names."""
    found = (dataset.repo, dataset.configs, dataset.data_files)
    wanted = (request.dataset, request.dataset_config, request.data_files)
    return (*found, dataset.split, dataset.requested_revision) == (
        *wanted,
        request.split,
        request.revision,
    )


def refuse_foreign_files(out: Path) -> None:
    """Refuse to overwrite shards that no plan of ours made."""
    foreign = [path.name for path in sorted(out.glob("*.bin"))] + [
        name for name in (MANIFEST,) if (out / name).exists()
    ]
    if foreign:
        raise ValueError(
            f"{out / foreign[0]}: was not made by a plan in {work_folder(out)}; "
            "nothing is overwritten, so choose another --out"
        )


def describe_difference(stored: Json, wanted: Json) -> str:
    """In one line, how the stored plan differs from the one that the command asks for."""
    differences = []
    for key in sorted(stored["policy"].keys() | wanted["policy"].keys()):
        before, now = stored["policy"].get(key), wanted["policy"].get(key)
        if before != now:
            differences.append(f"{key} was {before}, is now {now}")
    if (stored["hub"] or {}).get("repo") != (wanted["hub"] or {}).get("repo"):
        before, now = ((plan["hub"] or {}).get("repo", "local files") for plan in (stored, wanted))
        differences.append(f"source was {before}, is now {now}")
    else:
        differences += describe_sources_difference(stored, wanted)
        if stored.get("urls") != wanted.get("urls") and not differences:
            differences.append("--input gave the URLs in other words")
    differences += describe_tokenizers(
        *(restore_tokenizer(c["tokenizer_sha256"], c.get("tokenizer")) for c in (stored, wanted))
    )
    return "; ".join(differences) or "the units are cut differently"


def describe_sources_difference(stored: Json, wanted: Json) -> list[str]:
    """Which source files were added, removed or changed in size; the first three by name."""
    before = {entry[0]: entry[1] for entry in stored["sources"]}
    now = {entry[0]: entry[1] for entry in wanted["sources"]}
    differences = [f"{name} is new" for name in now if name not in before]
    differences += [f"{name} is gone" for name in before if name not in now]
    differences += [
        f"{name} had {before[name]:,} bytes, has {now[name]:,}"
        for name in now
        if name in before and before[name] != now[name]
    ]
    if len(differences) > 3:
        differences = [*differences[:3], f"and {len(differences) - 3} more files differ"]
    return differences
