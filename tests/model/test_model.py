"""The model computes what transformers' Llama computes, in every way that training calls it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from model.cache import allocate_cache
from model.config import ModelConfig
from model.recompute import ActivationCheckpointing
from model.rotation import make_rotation
from model.transformer import Transformer, rotate
from tests.tiny import CONFIG, make_model


def make_llama(model: Transformer) -> LlamaForCausalLM:
    """transformers' model with the same weights."""
    config = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.num_ids,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.layer_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=True,
        )
    )
    llama.load_state_dict(model.state_dict())
    return llama.eval()


def make_tokens(num_rows: int, num_tokens: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CONFIG.num_ids, (num_rows, num_tokens), generator=generator)


@pytest.mark.parametrize(
    ("config", "num_rows", "num_tokens"),
    [
        (CONFIG, 1, 1),
        (CONFIG, 3, 17),
        (CONFIG, 2, 128),
        (replace(CONFIG, num_attention_heads=1, rope_theta=500000.0), 2, 50),
        (replace(CONFIG, num_attention_heads=32, intermediate_size=11), 1, 33),
        (replace(CONFIG, hidden_size=24, num_hidden_layers=1, layer_norm_eps=1e-3), 4, 9),
    ],
)
def test_logits_equal_transformers(config: ModelConfig, num_rows: int, num_tokens: int) -> None:
    model = make_model(config)
    tokens = make_tokens(num_rows, num_tokens)
    with torch.no_grad():
        found, expected = model(tokens), make_llama(model)(tokens).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_gradients_equal_transformers() -> None:
    model = make_model()
    llama = make_llama(model)
    tokens = make_tokens(2, 33)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    llama(input_ids=tokens, labels=tokens).loss.backward()
    expected = dict(llama.named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name].grad, atol=1e-5, rtol=1e-3)


def test_default_config_is_the_seed_model() -> None:
    with torch.device("meta"):
        model = Transformer(ModelConfig())
    num_parameters = sum(weight.numel() for weight in model.parameters())
    assert num_parameters == ModelConfig().num_parameters() == 1_713_639_424
    assert ModelConfig().flops_per_token(2048) == pytest.approx(11.490e9, rel=1e-4)
    halved = 6 * 24 * 2048 * 2048  # Of 12 L D T.
    expected = ModelConfig().flops_per_token(2048) - halved
    assert ModelConfig().causal_flops_per_token(2048) == expected
    names = list(model.state_dict())
    assert names[:2] == ["model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"]
    assert "model.layers.23.mlp.down_proj.weight" in names
    assert len(names) == 1 + 24 * 9 + 2


def test_num_parameters_counts_the_model() -> None:
    assert make_model().config.num_parameters() == sum(p.numel() for p in make_model().parameters())


def test_weights_start_as_configured() -> None:
    torch.manual_seed(0)
    model = Transformer(replace(CONFIG, initializer_range=0.02))
    for name, weight in model.named_parameters():
        if "norm" in name:
            assert bool((weight == 1).all()), name
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert weight.mean().abs().item() < 0.002, name


def test_head_is_the_embedding() -> None:
    model = make_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum("lm_head" in name for name, _ in model.named_parameters()) == 0


def test_later_tokens_do_not_change_earlier_logits() -> None:
    model, tokens = make_model(), make_tokens(1, 20)
    changed = tokens.clone()
    changed[0, 12] = (tokens[0, 12] + 1) % CONFIG.num_ids
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_rotation_makes_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, CONFIG.head_size)

    def product(q_position: int, k_position: int) -> Tensor:
        turned_q = rotate(q, make_rotation(torch.tensor([[q_position]]), CONFIG))
        turned_k = rotate(k, make_rotation(torch.tensor([[k_position]]), CONFIG))
        return (turned_q * turned_k).sum()

    torch.testing.assert_close(product(9, 2), product(107, 100), atol=1e-4, rtol=1e-4)
    assert not torch.isclose(product(9, 2), product(2, 9), atol=1e-3)


def test_loss_is_the_mean_cross_entropy_of_the_logits() -> None:
    model, tokens = make_model(), make_tokens(2, 31)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    loss = model(inputs, targets)
    logits = model(inputs).flatten(0, 1)
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    expected = torch.nn.functional.cross_entropy(logits, targets.flatten())
    torch.testing.assert_close(loss, expected)


def find_gradients(model: Transformer) -> dict[str, Tensor]:
    """The gradients, and the loss as `loss`."""
    model.zero_grad()
    tokens = make_tokens(2, 31)
    loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    return {"loss": loss.detach()} | {name: grad.clone() for name, grad in gradients.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_residual_stream_is_half_under_autocast(dtype: torch.dtype) -> None:
    model, tokens = make_model(), make_tokens(2, 16)
    dtypes = []
    for block in model.model.layers:
        block.register_forward_hook(lambda _block, _inputs, output: dtypes.append(output.dtype))
    with torch.no_grad():
        exact = model(tokens, tokens)
        dtypes.clear()
        with torch.autocast("cpu", dtype):
            loss = model(tokens, tokens)
    assert dtypes == [dtype] * CONFIG.num_hidden_layers
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)


def test_cached_prediction_equals_the_whole_forward_for_unequal_rows() -> None:
    model, tokens = make_model().eval(), make_tokens(3, 30)
    with torch.no_grad():
        expected = model(tokens)
    cache = allocate_cache(CONFIG, 3, 64, torch.device("cpu"), torch.float32)
    lengths = [10, 3, 20]
    ends = [row * 20 + length - 1 for row, length in enumerate(lengths)]
    # Padded behind their ends, in two pieces of 12 and 8.
    model.predict(tokens[:, :12], cache)
    found = model.predict(tokens[:, 12:20], cache, torch.tensor([2 * 8 + 7]))
    torch.testing.assert_close(found[0], expected[2, 19], atol=1e-4, rtol=0)
    whole = allocate_cache(CONFIG, 3, 64, torch.device("cpu"), torch.float32)
    found = model.predict(tokens[:, :20], whole, torch.tensor(ends))
    for row, length in enumerate(lengths):
        torch.testing.assert_close(found[row], expected[row, length - 1], atol=1e-4, rtol=0)
    torch.testing.assert_close(cache.keys[:, :, :, :20], whole.keys[:, :, :, :20])
    cache.set_lengths(lengths)
    for step in range(0, 10, 2):  # Each row's next token, then each one's next two.
        last = torch.stack(
            [tokens[row, end + step : end + step + 2] for row, end in enumerate(lengths)]
        )
        torch.testing.assert_close(
            model.predict(last[:, :1], cache),
            torch.stack([expected[row, end + step] for row, end in enumerate(lengths)]),
            atol=1e-4,
            rtol=0,
        )
        cache.set_lengths([length + step for length in lengths])
        found = model.predict(last, cache, torch.arange(6)).view(3, 2, -1)
        for row, end in enumerate(lengths):
            torch.testing.assert_close(
                found[row], expected[row, end + step : end + step + 2], atol=1e-4, rtol=0
            )


def test_rows_of_a_cache_come_and_go() -> None:
    model, tokens = make_model().eval(), make_tokens(3, 12)
    with torch.no_grad():
        expected = model(tokens)
    read = allocate_cache(CONFIG, 3, 12, torch.device("cpu"), torch.float32)
    lengths = [8, 5, 10]
    model.predict(tokens[:, :10], read)
    read.set_lengths(lengths)
    cache = allocate_cache(CONFIG, 0, 0, torch.device("cpu"), torch.float32)
    rows = []
    for change in (0, 1, 2, "first goes", 0, "last goes"):
        if isinstance(change, int):
            cache.make_room(len(rows) + 1, lengths[change] + 1 + 64 * change)
            cache.insert(read, change)
            rows.append(change)
        else:
            gone = 0 if change == "first goes" else len(rows) - 1
            cache.remove(gone)
            rows[gone] = rows[-1]
            rows.pop()
        held = [*cache.lengths]
        last = torch.stack([tokens[row, lengths[row]] for row in rows])
        found = model.predict(last[:, None], cache)
        cache.set_lengths(held)
        for logits, row in zip(found, rows, strict=True):
            torch.testing.assert_close(logits, expected[row, lengths[row]], atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore")  # The compiler has its own.
def test_compiled_blocks_keep_names_and_share_one_graph() -> None:
    model, tokens = make_model(), make_tokens(2, 31)
    names, before = list(model.state_dict()), find_gradients(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.compile_blocks(backend="aot_eager")  # All but the code generation, which takes long.
    after = find_gradients(model)
    assert list(model.state_dict()) == names
    # One for all blocks, and one for the loss.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, atol=1e-4, rtol=1e-3)
    assert torch.isfinite(model(tokens)).all()


@pytest.mark.filterwarnings("ignore")  # The compiler has its own.
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_batches_of_two_sizes_share_one_graph_from_the_first(
    checkpointing: ActivationCheckpointing,
) -> None:
    """Else the first batch of a process would be computed by another than its likes later."""
    graphs: list[object] = []
    model = make_model()
    model.activation_checkpointing = checkpointing

    def count(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(inputs)
        return graph

    for takes_any_batch, number in ((True, 1), (False, 2)):
        torch._dynamo.reset()
        graphs.clear()
        model.compile_blocks(count, takes_any_batch=takes_any_batch)  # type: ignore[arg-type]
        for size in (3, 2, 3, 4):
            model(make_tokens(size, 31)).sum().backward()
        assert len(graphs) == number


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vocab_size", 2**31 + 1, "model.vocab_size is 2147483649; expected at most 2147483648"),
        ("vocab_size", "many", "model.vocab_size is 'many'; expected a whole number above 0"),
        ("vocab_size", 0, "model.vocab_size is 0; expected a whole number above 0"),
        ("hidden_size", 2050, "model.hidden_size is 2050; expected a multiple of 2"),
        ("num_attention_heads", 3, "model.hidden_size is 2048; expected a multiple of 2"),
        ("num_hidden_layers", 1.5, "model.num_hidden_layers is 1.5; expected a whole number"),
        ("num_hidden_layers", True, "model.num_hidden_layers is True; expected a whole number"),
        ("rope_theta", -1.0, "model.rope_theta is -1.0; expected a number above 0"),
        ("layer_norm_eps", float("nan"), "model.layer_norm_eps is nan"),
    ],
)
def test_impossible_configs_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.")):
        ModelConfig(**{key: value})
