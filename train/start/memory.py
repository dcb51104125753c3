"""How much memory a rank needs, computed from the settings before anything is allocated.

The activations' bytes were measured at hidden 2048, inner 8192, fp16: 127,368 a token and block
eagerly and 86,408 compiled (docs/log.md), and are scaled by the sizes they consist of; what of it
is queries or keys was counted where their widths differ. docs/plan.md says where the estimate was
compared with runs.

P parameters, E of them in the head, which may also be the embedding, and R ranks.
"""

from dataclasses import dataclass, fields

from model.config import ModelConfig
from train.config import Config

# Python with torch on a CPU; CUDA's context and the libraries' workspaces on a GPU.
BASE_BYTES = {"cpu": 450 * 10**6, "cuda": 1500 * 10**6, "mps": 1000 * 10**6}
# The most that a chunk's fp32 logits take (model/logits/chunks.py).
LOGITS_BYTES = {"cuda": 2**30}
CPU_LOGITS_BYTES = 128 * 2**20
# What the vocabulary is padded to a multiple of, inside the loss.
VOCABULARY_MULTIPLE = {"cuda": 64}
# What `selective` keeps of a block where nothing is compiled.
EAGER_SELECTIVE_SHARE = 0.5


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank needs, by what needs them."""

    # Python, torch, CUDA's context and workspaces.
    base: int
    weights: int
    gradients: int
    # AdamW's two means, or Muon's one.
    optimizer: int
    # For the exchange between ranks: ddp's buckets, or what fsdp gathers.
    exchange: int
    # What blocks keep for the backward pass, with fp16 or bf16 copies of their weights.
    activations: int
    # The loss, or one block in its backward pass: what is larger.
    working: int

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer state: less is impossible."""
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        """The most at once, as far as is known."""
        return sum(getattr(self, entry.name) for entry in fields(self))


def estimate_memory(config: Config, device_type: str, num_ranks: int = 1) -> Memory:
    """What a rank needs on a device of this type ("cpu", "cuda", "mps").

    The settings name a micro-batch and a kind of checkpointing (train/start/fit.py chooses them).

    >>> estimate_memory(Config(), "cuda").state
    27418230784
    """
    model, training = config.model, config.training
    is_sharded = config.distributed.strategy == "fsdp" and num_ranks > 1
    num_parameters = model.num_parameters()
    own = -(-num_parameters // num_ranks) if is_sharded else num_parameters
    # An adapter's parameters are beside the model's, and alone have gradients.
    added = 0 if training.adapter is None else config.trained_parameters
    # DPO's reference is a copy of it, or with an adapter the model itself.
    num_models = 2 if training.objective == "dpo" and training.adapter is None else 1
    tokens = training.micro_batch * config.data.max_seq_length
    compiles = training.compile if training.compile is not None else device_type == "cuda"
    is_half = training.precision != "fp32"
    return Memory(
        base=BASE_BYTES.get(device_type, BASE_BYTES["cpu"]),
        weights=4 * (own * num_models + added),
        gradients=4 * (added or own),
        optimizer=-(-config.optimizer_bytes // num_ranks) if is_sharded else config.optimizer_bytes,
        exchange=exchange_bytes(config, num_ranks, is_sharded),
        activations=activation_bytes(config, tokens, is_half, compiles),
        working=max(
            loss_bytes(model, tokens, is_half, compiles, device_type),
            backward_bytes(config, tokens, is_half, compiles),
        ),
    )


def exchange_bytes(config: Config, num_ranks: int, is_sharded: bool) -> int:
    """DDP's buckets, of the size of all gradients; or what fsdp has whole at the same time."""
    if num_ranks == 1:
        return 0
    if not is_sharded:
        return 4 * config.trained_parameters
    return gathered_bytes(config.model)


def gathered_bytes(model: ModelConfig) -> int:
    """What is whole at the same time under fsdp, in fp32, at the most: in a backward pass.

    A block's weights and their gradients, the buffers that both travel in, and those with the
    weights of the block before it and the gradients of the one behind; embedding and head, and
    their gradients. Not measured on GPUs; on CPUs it was 4 blocks (docs/log.md).

    >>> gathered_bytes(ModelConfig())
    2434123768
    """
    embedding = model.embedding_parameters
    block = (model.num_parameters() - embedding) // model.num_hidden_layers
    return 4 * (6 * block + 2 * embedding)


def activation_bytes(config: Config, tokens: int, is_half: bool, compiles: bool) -> int:
    """What the blocks keep from the forward pass for the backward pass."""
    model, training = config.model, config.training
    block, inputs = bytes_per_token(config, is_half, compiles), input_bytes(model, is_half)
    checkpointing = training.activation_checkpointing
    if checkpointing == "none":
        kept = block
    elif checkpointing == "full":
        kept = inputs
    else:
        share = training.activation_memory_budget if compiles else EAGER_SELECTIVE_SHARE
        kept = inputs + round(share * (block - inputs))
    # Autocast keeps each copy that it made; a compiled block keeps its own, if it keeps everything.
    has_copies = is_half and (not compiles or checkpointing == "none")
    copies = 2 * (model.num_parameters() - model.embedding_parameters) if has_copies else 0
    return tokens * model.num_hidden_layers * kept + copies


def backward_bytes(config: Config, tokens: int, is_half: bool, compiles: bool) -> int:
    """What a block takes in its backward pass, beside the head's gradient, which is there before.

    A block that was not kept is computed again first; its gradients are about half as much.
    """
    model = config.model
    block, inputs = bytes_per_token(config, is_half, compiles), input_bytes(model, is_half)
    is_kept = config.training.activation_checkpointing == "none"
    at_work = inputs + block // 2 + (0 if is_kept else block)
    head = 0 if config.training.adapter else 4 * model.head_parameters
    return head + tokens * at_work


def input_bytes(model: ModelConfig, is_half: bool) -> int:
    """A block's input, a token: the residual stream."""
    return (2 if is_half else 4) * model.hidden_size


def bytes_per_token(config: Config, is_half: bool, compiles: bool) -> int:
    """What one block keeps of one token for the backward pass, if it keeps everything.

    >>> bytes_per_token(Config(), is_half=True, compiles=False)
    126976
    >>> bytes_per_token(Config(), is_half=True, compiles=True)
    86016
    """
    model = config.model
    hidden, inner = (8, 6) if compiles else (20, 8)
    in_half = hidden * model.hidden_size + inner * model.intermediate_size
    # Queries and what attention makes of them, twice; keys and values.
    in_half += (6 * model.num_attention_heads + 4 * model.num_kv_heads) * model.head_size
    # Plain products keep a weight for each earlier token, in fp32 in any precision.
    is_plain = config.training.attention == "math"
    weights = 4 * model.num_attention_heads * config.data.max_seq_length if is_plain else 0
    return (in_half if is_half else 2 * in_half) + weights


def loss_bytes(
    model: ModelConfig, tokens: int, is_half: bool, compiles: bool, device_type: str
) -> int:
    """What the loss takes at once: a chunk's fp32 logits, gradients, and a copy of the head."""
    limit = LOGITS_BYTES.get(device_type, CPU_LOGITS_BYTES)
    chunk_logits = min(4 * tokens * model.num_ids, limit)
    # In fp32 it takes the place of the logits, but not in compiled code.
    dlogits = chunk_logits // 2 if is_half else chunk_logits if compiles else 0
    head = model.head_parameters
    # The head's gradient so far, beside either a chunk's logits or what the chunk adds to it.
    at_once = 4 * head + max(chunk_logits + dlogits, (dlogits or chunk_logits) + 4 * head)
    size = 2 if is_half else 4
    hidden = 2 * size * tokens * model.hidden_size
    is_padded = model.num_ids % VOCABULARY_MULTIPLE.get(device_type, 1) != 0
    return at_once + (size * head if is_half or is_padded else 0) + hidden
