"""What operators torch runs, the memory that their results take, and what autograd keeps."""

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages made inside that are alive, after each operator.

    `peak` is the most there were. Fake tensors count as what they stand for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        given = {id(leaf) for leaf in tree_leaves((args, kwargs))}
        aliases = any(part.alias_info is not None for part in operator._schema.returns)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and id(leaf) not in given and not aliases:
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                self.storages[reference.cdata] = (reference, storage.nbytes())
        self.storages = {
            key: (reference, size)
            for key, (reference, size) in self.storages.items()
            if not reference.expired()
        }
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return result


class Operators(TorchDispatchMode):
    """Counts the calls of operators inside by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = operator.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return operator(*args, **(kwargs or {}))


def count_kept_bytes(run: Callable[[], object]) -> int:
    """The bytes of the storages that autograd keeps after a forward pass."""
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = run()  # Alive until all is counted, so that no address comes twice.
    del kept
    return sum(storages.values())
