"""Muon: momentum whose singular values are all made about 1, a matrix at a time (Jordan 2024).

torch.optim.Muon has its groups, its checks and its momentum, and they are used here. Its step is
not, for three reasons:

- every rank would orthogonalize every matrix. Here each does its share, and the ranks exchange the
  updates: bit for bit the same weights on all. Under fsdp a matrix is whole on one rank only, while
  it is at work;
- it multiplies in bfloat16, whatever the device. On a CPU without units for it that takes 20 times
  as long as fp32, which is taken there;
- its learning rate is scaled as in the first publication ("original") unless told otherwise, which
  wants rates of about 0.02; with AdamW's, it moves weights 20 to 50 times less than AdamW does, and
  looks weak. Here it is always "match_rms_adamw" (Liu et al. 2025, arXiv 2502.16982, section 2.2):
  an update has the RMS that AdamW's usually have, 0.2, so both take one rate and one decay.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from train.ranks.distributed import Rank
from train.ranks.exchange import deal_rows, gather_rows
from train.training_config import TrainingConfig

# Of the polynomial a x + b x^3 + c x^5, which takes singular values from 0.01 to 1 to between 0.68
# and 1.14 in five rounds: it is steep at 0 rather than exact at 1 (Jordan 2024).
COEFFICIENTS = 3.4445, -4.7750, 2.0315
ROUNDS = 5
# The least that a matrix is divided by.
EPSILON = 1e-7
# The RMS of AdamW's updates, by its learning rate.
RMS = 0.2
# A rank has the matrices of so many numbers in hand at once, or a single one that is larger. Small
# ones are a stack of a shape and few products: threads that meet at each of hundreds wait longer
# than they multiply. Large ones keep a device busy by themselves.
NUMBERS_AT_ONCE = 2**24


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Matrices (M, N), each with its singular vectors, and singular values of about 1.

    By Newton-Schulz rounds in their own dtype, those of one shape or its transpose together. What
    is below about 0.01 of a matrix's Frobenius norm stays smaller; zeros stay zeros.
    """
    wides = [m.T if is_tall(m) else m for m in matrices]
    found: list[Tensor] = [*wides]
    for shape in dict.fromkeys(wide.shape for wide in wides):
        places = [n for n, wide in enumerate(wides) if wide.shape == shape]
        stack = torch.stack([wides[n] for n in places])
        for n, made in zip(places, orthogonalize_stack(stack), strict=True):
            found[n] = (made.T if is_tall(matrices[n]) else made).contiguous()
    return found


def is_tall(matrix: Tensor) -> bool:
    """Whether a matrix has more rows than columns."""
    return matrix.shape[0] > matrix.shape[1]


def orthogonalize_stack(x: Tensor) -> Tensor:
    """The same for a stack (S, M, N) of matrices that are not tall."""
    a, b, c = COEFFICIENTS
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=EPSILON)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def choose_dtype(device: torch.device) -> torch.dtype:
    """What matrices are multiplied in: bf16 on GPUs that have it, fp32 elsewhere."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float32


class Muon(torch.optim.Muon):
    """Muon for some matrices, and AdamW for all other parameters, as one optimizer.

    Its first group are the matrices, the others AdamW's; both share `state`. All ranks step
    together. It only steps when gradients are known to be finite (train/take_step.py), so it looks
    at no scaler.
    """

    # Otherwise a scaler would wait for the device to ask what is known.
    _step_supports_amp_scaling = True

    def __init__(
        self, matrices: list[Tensor], adamw: torch.optim.AdamW, config: TrainingConfig, rank: Rank
    ) -> None:
        group = {"params": matrices, "relative_rate": config.relative_muon_rate}
        super().__init__(
            [group],
            lr=config.learning_rate * config.relative_muon_rate,
            weight_decay=config.weight_decay,
            momentum=config.muon_momentum,
        )
        self.rank = rank
        self.dtype = choose_dtype(rank.device)
        self.adamw = adamw
        self.param_groups += adamw.param_groups
        adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters by their gradients."""
        group = self.param_groups[0]
        for turns in bundle(deal(group["params"], self.rank.world_size)):
            for matrix, update in self._find_updates(turns):
                weight = local(matrix)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * RMS * max(matrix.shape) ** 0.5)
        self.adamw.step()

    def _find_updates(self, turns: list[list[Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The matrices of some turns with their updates, those of a turn each by another rank."""
        owned = [(owner, matrix) for turn in turns for owner, matrix in enumerate(turn)]
        wholes = [self._gather(self._add_momentum(m), m, owner) for owner, m in owned]
        # Of each turn one is here, so that all ranks work at the same time.
        made = iter(orthogonalize([whole for whole in wholes if whole is not None]))
        for (owner, matrix), whole in zip(owned, wholes, strict=True):
            update = None if whole is None else next(made)
            yield matrix, self._spread(update, matrix, owner)

    def _add_momentum(self, matrix: Tensor) -> Tensor:
        """Nesterov's momentum of a matrix, with this step's gradient in it: this rank's rows."""
        momentum: float = self.param_groups[0]["momentum"]
        assert matrix.grad is not None
        gradient, state = local(matrix.grad), self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix, requires_grad=False)
        mean = local(state["momentum_buffer"]).lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum).to(self.dtype)

    def _gather(self, rows: Tensor, matrix: Tensor, owner: int) -> Tensor | None:
        """The whole of a matrix on the rank that is to work at it; None on all others."""
        if isinstance(matrix, DTensor):
            return gather_rows(self.rank, rows, matrix.shape, owner)
        return rows if owner == self.rank.rank else None

    def _spread(self, made: Tensor | None, matrix: Tensor, owner: int) -> Tensor:
        """This rank's rows of an update that `owner` has made."""
        weight = local(matrix)
        if isinstance(matrix, DTensor):
            rows = torch.empty_like(weight, dtype=self.dtype)

            def fill(whole: Tensor) -> None:
                assert made is not None, "only its owner is asked"
                whole.copy_(made)

            deal_rows(self.rank, rows, matrix.shape, fill, owner)
            return rows
        if self.rank.world_size == 1:
            assert made is not None
            return made
        update = torch.empty_like(weight, dtype=self.dtype) if made is None else made
        dist.broadcast(update, owner)
        return update


def deal(matrices: list[Tensor], num_ranks: int) -> list[list[Tensor]]:
    """The matrices in turns of one for each rank, those of a turn about equally much work."""
    by_work = sorted(matrices, key=lambda matrix: matrix.numel() * min(matrix.shape), reverse=True)
    return [by_work[first : first + num_ranks] for first in range(0, len(by_work), num_ranks)]


def bundle(turns: list[list[Tensor]]) -> list[list[list[Tensor]]]:
    """Turns that are taken together: as many as give no rank more than NUMBERS_AT_ONCE."""
    bundles: list[list[list[Tensor]]] = []
    num_numbers = NUMBERS_AT_ONCE
    for turn in turns:
        largest = max(matrix.numel() for matrix in turn)
        if num_numbers + largest > NUMBERS_AT_ONCE:
            bundles.append([])
            num_numbers = 0
        bundles[-1].append(turn)
        num_numbers += largest
    return bundles


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor that may be cut up; they share its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
