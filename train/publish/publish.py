"""`velocity publish`: the files of a repository, written into a folder or committed on the Hub."""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from train.page.panels import fill_panels
from train.page.pictures import can_draw, draw_png
from train.publish.card import CURVES, make_card
from train.publish.choose import Say, choose_files
from train.publish.facts import Facts, gather
from train.publish.space import make_space

# A repository's files by name: as bytes, or where they are.
Files = Mapping[str, bytes | Path]
# What the Hub takes: letters, digits, and marks that are not at an end nor twice.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9]|[._-](?![._-]))*(?<![._-])")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
MAX_NAME = 96


@dataclass(frozen=True)
class Publication:
    """What is published, and where."""

    ckpt: Path
    repo: str
    license: str
    space: bool = False
    private: bool = False

    def __post_init__(self) -> None:
        user, slash, name = self.repo.partition("/")
        for part in (user, name):
            if not slash or not NAME.fullmatch(part) or len(self.repo) > MAX_NAME:
                raise ValueError(f"--repo is {self.repo!r}; expected USER/NAME, as on the Hub")
        if not LICENSE.fullmatch(self.license):
            raise ValueError(
                f"--license is {self.license!r}; expected a name of the Hub's list, such as mit, "
                "apache-2.0 or other"
            )

    @property
    def space_repo(self) -> str | None:
        """The Space's name: that of the model."""
        return self.repo if self.space else None


def publish(publication: Publication, out: Path | None, say: Say) -> Iterator[str]:
    """Commit the model, and its Space, on the Hub; with `out`, write them there instead.

    Yields what was done. Raises ValueError if the Hub refuses.
    """
    facts = gather(publication.ckpt)
    repositories = {"model": collect_model(publication, facts, say)}
    if publication.space_repo:
        repositories["space"] = make_space(
            publication.repo, publication.space_repo, publication.license
        )
    if out is not None:
        write_folders(out, repositories)
    for kind, files in repositories.items():
        if out is not None:
            yield f"{out / kind}: {len(files)} files, as they would be in {publication.repo}"
        else:
            yield commit(publication, kind, files)


def collect_model(publication: Publication, facts: Facts, say: Say) -> Files:
    """The model's files, its card and its curves."""
    files: dict[str, bytes | Path] = {**choose_files(facts.folder, say)}
    curves = draw_curves(facts, say)
    if curves is not None:
        files[CURVES] = curves
    card = make_card(
        facts, publication.repo, publication.license, publication.space_repo, curves is not None
    )
    return files | {"README.md": card.encode()}


def draw_curves(facts: Facts, say: Say) -> bytes | None:
    """The losses as a PNG; None where there is no log, or nothing to draw with."""
    panels = [*fill_panels([facts.log])] if facts.log is not None else []
    losses = [(panel, series) for panel, series in panels if panel.key == "loss"]
    if not losses:
        say("no curves on the card: there is no log of the run until this checkpoint")
        return None
    if not can_draw():
        say("no curves on the card: they need matplotlib (pip install 'velocitylm[plot]')")
        return None
    [(panel, series)] = losses
    return draw_png(panel, series, 1)


def write_folders(out: Path, repositories: Mapping[str, Files]) -> None:
    """Write each repository's files into a folder of its own below `out`: all, or nothing."""
    if out.exists():
        raise ValueError(f"{out}: is there already; name a new folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        made = Path(work) / out.name
        for kind, files in repositories.items():
            (made / kind).mkdir(parents=True)
            for name, content in files.items():
                if isinstance(content, bytes):
                    (made / kind / name).write_bytes(content)
                else:
                    shutil.copyfile(content, made / kind / name)
        os.rename(made, out)


def commit(publication: Publication, kind: str, files: Files) -> str:
    """Make the repository, if it is not there, and commit the files; returns what to look at."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    with explaining(publication.repo):
        api = HfApi(library_name="velocity")
        made = api.create_repo(
            publication.repo,
            repo_type=kind,
            private=publication.private or None,
            exist_ok=True,
            space_sdk="gradio" if kind == "space" else None,
        )
        # Of one that is there already, the Hub leaves it as it is.
        if publication.private and not api.repo_info(publication.repo, repo_type=kind).private:
            raise ValueError(
                f"{made}: is public, and was so before; make it private in its settings, or name "
                "another --repo"
            )
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        info = api.create_commit(
            publication.repo, operations, commit_message="Published by Velocity", repo_type=kind
        )
    return f"{made}: {len(files)} files, commit {info.oid[:12]}"


@contextmanager
def explaining(repo: str) -> Iterator[None]:
    """Turn what the Hub or its library refuses into one line; no token is part of it."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise ValueError(
            f"{repo}: the Hub wants a token that may write; log in with `hf auth login`, or set "
            "HF_TOKEN"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise ValueError(
            f"{repo}: HF_HUB_OFFLINE is set; unset it, or write a folder with --dry-run"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = {
            401: "; log in with `hf auth login`, or set HF_TOKEN",
            403: "; use a token that may write there (`hf auth whoami`)",
            429: "; wait, then run the same command again",
        }
        raise ValueError(
            f"{repo}: {constants.ENDPOINT} answered HTTP {status} "
            f"({error.server_message or 'no reason given'}){advice.get(status, '')}"
        ) from None
    except Exception as error:
        # The HTTP library of huggingface_hub differs between its releases (httpx, httpx2).
        if not any(kind.__name__ == "TransportError" for kind in type(error).__mro__):
            raise
        raise ValueError(
            f"{repo}: {constants.ENDPOINT} cannot be reached ({error}); try again"
        ) from None
