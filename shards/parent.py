"""How a set was made from another one: as a new version of it, or as a part."""

from dataclasses import asdict, dataclass

from shards.disk.json_files import Json

# A change (a new version), or a cut (a part).
REMOVE = "remove"
APPEND = "append"
PART = "part"
KEEP_PLACES = "keep-places"
CUT = "cut"


@dataclass(frozen=True)
class Parent:
    """The set that another one was made from, and how."""

    dataset_id: str
    change: str = ""
    # For a removal: whether the remaining tokens kept their places or moved up.
    mode: str | None = None
    # Documents and tokens that were removed or appended.
    documents: int | None = None
    tokens: int | None = None
    # For a part: its split, its share (i/n), and the earlier versions of the whole set.
    split: str | None = None
    part: str | None = None
    ancestors: list[str] | None = None

    @property
    def moved_no_token(self) -> bool:
        """Whether every remaining token is where it was; appended tokens come last."""
        return self.change == APPEND or self.mode == KEEP_PLACES

    def is_same_cut(self, other: "Parent") -> bool:
        """Whether both are parts, and the same part of their sets."""
        mine, theirs = (self.split, self.part), (other.split, other.part)
        return self.change == other.change == PART and mine == theirs

    def describe(self) -> Json:
        """Its form in the manifest: the fields that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}
