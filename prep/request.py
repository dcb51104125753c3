"""What `velocity prep` was asked for."""

from dataclasses import dataclass
from pathlib import Path

from prep.planning.plan import Policy
from prep.text.encoder import ENCODERS
from shards.edit.part import Part

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    out: Path
    policy: Policy
    # Local files, folders and globs; empty = take `dataset` from the Hub.
    inputs: tuple[str, ...] = ()
    dataset: str = "tiiuae/falcon-refinedweb"
    dataset_config: str | None = None
    split: str = "train"
    revision: str | None = None
    # Units at a time; None = one a core, of this machine or of the Ray cluster.
    workers: int | None = 1
    # One of prep.encoder.ENCODERS; None = the fastest that is installed. Changes no byte.
    encoder: str | None = None
    # What does the units; changes no byte.
    engine: str = "local"
    ray_address: str | None = None
    # The part of the units that this process does; None = all of them, and the manifest.
    part: Part | None = None
    # A finished set that this one will be appended to: its documents come first for --dedup.
    after: Path | None = None
    # Where the set is sent, as it may be printed; `out` is then where it is made.
    url: str | None = None

    @property
    def place(self) -> str:
        """The set's place as a command line names it, behind --out."""
        return f"{self.url} --staging {self.out}" if self.url else str(self.out)

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers is {self.workers}; expected at least 1")
        if self.engine not in ENGINES:
            raise ValueError(f"--engine is {self.engine}; expected {' or '.join(ENGINES)}")
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError("--ray-address is for --engine ray; give both, or none")
        if self.encoder not in (None, *ENCODERS):
            expected = " or ".join(ENCODERS)
            raise ValueError(f"--encoder is {self.encoder}; expected {expected}")
        if self.part is not None:
            self._check_part()

    def _check_part(self) -> None:
        if self.engine != "local":
            raise ValueError(f"--part and --engine {self.engine} both share the work; choose one")
        for name in ("max_documents", "max_tokens"):
            if getattr(self.policy, name) is not None:
                option = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{option} counts through all units in plan order, which no part sees; "
                    f"leave it out with --part, or run without --part (--engine ray keeps it)"
                )
