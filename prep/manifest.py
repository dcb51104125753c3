"""The end of a prep run: receipts -> manifest.json, and the summary for the user."""

import platform
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from prep.chat.template import describe_chat
from prep.copies.cut import drop_copies
from prep.copies.exact import ExactCopies, PlacedShard
from prep.copies.near import NearCopies
from prep.copies.order import PlanOrder
from prep.planning.plan import Plan
from prep.policy import NEAR
from prep.readers.documents import BAD
from prep.sources.local import Source
from prep.tokenizer.identity import SetTokenizer
from prep.units.receipts import Audit, Receipt
from prep.units.signed import near_settings
from shards.disk.durable import write_file
from shards.disk.json_files import Json, hash_canonical
from shards.disk.layout import MANIFEST, TOKENIZER, temporary_folder
from shards.format import SPLITS, Manifest, Shard, make_manifest, read_manifest
from shards.inspect.packed import describe_loss, describe_packing, estimate_cut
from shards.schema import CONVERSATIONS
from shards.screen.lines import format_bytes, format_count, format_seconds
from shards.tokenizer import load_tokenizer, make_self_test
from shards.widths import describe_format

PACKAGES = (
    "velocitylm",
    "fastokens",
    "tokenizers",
    "pyarrow",
    "numpy",
    "datasets",
    "huggingface_hub",
)


def write_manifest(
    out: Path,
    plan: Plan,
    receipts: list[Receipt],
    workers: int,
    seconds: float | None,
    after: Path | None = None,
) -> Manifest:
    """Drop what --dedup asks for, and write manifest.json: from then on the set is complete.

    `seconds` is how long the run took; None if it was several runs, so nobody knows. Copies of
    documents in `after`, a finished set, are dropped as well.
    """
    audit = Audit()
    if plan.policy.dedup:
        copies = choose_copies(out, plan, receipts, after)
        audit.dropped.update(dict.fromkeys(copies.reasons, 0))
        audit.clusters, audit.copies = copies.clusters, copies.files
        row_tokens = plan.policy.row_tokens
        receipts = drop_copies(out, receipts, plan.tokenizer, copies, workers, row_tokens)
    for receipt in receipts:
        audit.add(receipt.audit)
    check_conservation(audit)
    shards = [
        shard
        for split in SPLITS
        for receipt in receipts
        for shard in receipt.shards
        if shard.split == split
    ]
    sources = [s for s in plan.sources if s.name in audit.rows_by_source]
    check_packing(shards, plan.policy.row_tokens)
    chat = describe_chat(out, plan.policy, find_kind(audit)) if plan.policy.chat else None
    hub, row_tokens = plan.content["hub"], plan.policy.row_tokens
    content = describe_content(
        out, sources, audit, plan.policy.content, plan.tokenizer, hub, row_tokens, chat
    )
    hashes = {name: h for receipt in receipts for name, h in receipt.sidecar_sha256.items()}
    environment = describe_environment(hashes, workers, seconds)
    write_file(out / MANIFEST, make_manifest(content, shards, audit.content, environment))
    return read_manifest(out)


def find_kind(audit: Audit) -> str:
    """What the documents of a set of chats are; ValueError if they are of both kinds."""
    if len(audit.kinds) > 1:
        counts = " and ".join(f"{kind} in {n:,} units" for kind, n in sorted(audit.kinds.items()))
        raise ValueError(
            f"the sources hold {counts}; expected one kind a set, so make two sets: remove this "
            "--out, and give each its own --input"
        )
    return next(iter(audit.kinds), CONVERSATIONS)


def choose_copies(
    out: Path, plan: Plan, receipts: list[Receipt], after: Path | None
) -> ExactCopies | NearCopies:
    """Which documents are copies, of the kind that --dedup names."""
    before = read_manifest(after) if after else None
    earlier = [PlacedShard(after or out, shard) for shard in before.shards] if before else []
    folder = temporary_folder(out) / "copies"
    if plan.policy.dedup != NEAR:
        return ExactCopies(receipts, earlier, out, folder)
    settings = near_settings(plan.policy)
    documents = PlanOrder(out, receipts, earlier, settings, plan.tokenizer)
    basis = hash_canonical([plan.plan_id, before.dataset_id if before else None])
    return NearCopies(documents, basis, folder)


def check_conservation(audit: Audit) -> None:
    """Assert that every document read is in the set or was dropped for a counted reason."""
    accounted = audit.train + audit.validation + sum(audit.dropped.values())
    assert audit.documents_read == accounted, audit
    assert audit.documents_read == sum(audit.rows_by_source.values()), audit


def check_packing(shards: Sequence[Shard], row_tokens: int | None) -> None:
    """Assert that all shards are packed as asked for, and that rows are documents and padding."""
    for shard in shards:
        assert shard.row_tokens == row_tokens, shard
        assert row_tokens is None or shard.num_tokens % row_tokens == 0, shard


def describe_content(
    folder: Path,
    sources: Iterable[Source],
    audit: Audit,
    policy: Json,
    tokenizer: SetTokenizer,
    hub: Json | None = None,
    row_tokens: int | None = None,
    chat: Json | None = None,
) -> Json:
    """The part of the manifest that decides the dataset_id, except for the shards.

    `folder` has the set's tokenizer.json; `hub` is the dataset that the sources come from, if any;
    `row_tokens` are those of a row in a packed set; `chat` is what a set of chats says of them.
    """
    return {
        "format": describe_format(tokenizer.token_bytes, row_tokens, chat is not None),
        "sources": {
            "hub": hub,
            "files": [
                {
                    "name": source.name,
                    "num_bytes": source.num_bytes,
                    "sha256": source.sha256,
                    "rows": audit.rows_by_source[source.name],
                }
                for source in sources
            ],
        },
        "tokenizer": {
            **describe_tokenizer(tokenizer),
            "self_test": make_self_test(load_tokenizer(folder / TOKENIZER)),
        },
        "policy": policy,
        **({} if chat is None else {"chat": chat}),
    }


def describe_tokenizer(tokenizer: SetTokenizer) -> Json:
    """What the manifest says about the tokenizer: a token before documents only if there is one."""
    facts = {
        "name": tokenizer.name,
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "begin_of_text": tokenizer.begin_of_text,
    }
    return {key: value for key, value in facts.items() if value is not None}


def describe_environment(
    sidecar_sha256: dict[str, str], workers: int, seconds: float | None
) -> Json:
    """Where, when and with what the set was made: nothing that decides a token."""
    return {
        "versions": {name: find_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "workers": workers,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": None if seconds is None else round(seconds, 1),
        "sidecar_sha256": sidecar_sha256,
    }


def find_version(package: str) -> str | None:
    """A package's version; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_bad(audit: Audit) -> list[str]:
    """What --on-bad-document skip left out: how much, and the first few."""
    num_documents = sum(n for why, n in audit.dropped.items() if why.startswith(BAD))
    files = ", ".join(f"{count:,} {reason}" for reason, count in audit.left_out.items())
    lines = []
    if files:
        lines.append(f"files left out, or pieces of large ones: {files}")
    if audit.bad:
        num_bad = num_documents + sum(audit.left_out.values())
        lines.append(f"bad, and left out: {num_bad:,}; the first of them:")
        lines += [f"  {message}" for message in audit.bad]
    return lines


def describe_rows(manifest: Manifest, out: Path) -> list[str]:
    """What packing cost and what it saved, in a line; none for a set that is not packed."""
    packing = describe_packing(manifest)
    if packing is None:
        return []
    if manifest.chat is not None:
        return [f"packed: {packing}"]  # None is cut.
    cut = estimate_cut(out, manifest)
    return [f"packed: {packing} (one after another, about {cut:,.0f} would be)"]


def describe_chats(manifest: Manifest, audit: Audit) -> list[str]:
    """How much is trained on, and which chats are too long; nothing for a set without chats."""
    if manifest.chat is None:
        return []
    lines = [f"chats: {describe_loss(manifest)}"]
    if audit.longest:
        lines.append(
            f"{audit.dropped.get('too long', 0):,} chats have more than {manifest.row_tokens:,} "
            f"tokens and were dropped, as none is cut; the longest has {audit.longest:,}: to keep "
            "them, raise --pack-tokens, and data.max_seq_length with it"
        )
    return lines


def summarize(manifest: Manifest, out: Path) -> list[str]:
    """What was made, the audit, and what to type next."""
    audit, environment = Audit(**manifest.audit), manifest.environment
    train, validation = manifest.num_tokens("train"), manifest.num_tokens("validation")
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in audit.dropped.items())
    rate = ""
    if environment["seconds"] is not None:
        seconds = max(environment["seconds"], 0.1)
        tokens_per_second = format_count((train + validation) / seconds)
        rate = f" in {format_seconds(seconds)}: {tokens_per_second} tokens/s"
    lines = [
        f"{out}: {len(manifest.shards):,} shards, {train:,} train tokens, "
        f"{validation:,} validation tokens",
        f"documents: {audit.documents_read:,} read = {audit.train:,} train + "
        f"{audit.validation:,} validation + {sum(audit.dropped.values()):,} dropped ({dropped})",
        f"{format_bytes(audit.text_bytes)} of text{rate}",
        f"dataset_id {manifest.dataset_id}",
    ]
    lines += describe_rows(manifest, out)
    lines += describe_chats(manifest, audit)
    lines += describe_bad(audit)
    if audit.texts_repaired:
        lines.append(
            f"{audit.texts_repaired:,} texts had invalid UTF-8 or lone surrogates, "
            "replaced by U+FFFD"
        )
    if not train + validation:
        what = "the sources, the filters and --text-column"
        if manifest.chat is not None:
            what = "why chats were dropped, the sources, the filters and --pack-tokens"
        lines.append(f"no document was kept, so there is nothing to train on; look at {what}")
    elif not validation:
        lines.append("no document went to validation; raise --validation-fraction to get some")
    return lines
