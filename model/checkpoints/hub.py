"""Checkpoints by name: a folder on this machine, or a model of the Hub, which is fetched first."""

from pathlib import Path

from shards.screen.lines import Say
from shards.screen.url import is_hub_model


def fetch(place: str | Path, say: Say) -> Path:
    """The folder at `place`; that of hf://user/name[@revision] is in the Hub's cache then."""
    if not is_hub_model(place):
        return Path(place)
    # With what downloads, which most commands do without.
    from prep.remote.hub_model import fetch_model

    return fetch_model(place, say)
