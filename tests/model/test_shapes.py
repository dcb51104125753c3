"""Models of other Llama shapes compute what transformers computes: read, cached, trained, saved."""

import json
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from model.attention import attend
from model.cache import allocate_cache
from model.checkpoints.folder import load_model, save_model
from model.checkpoints.hugging_face import Boundaries, make_config_json, read_config_json
from model.config import ModelConfig
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.transformer import Transformer
from tests.tiny import CONFIG, SENTENCES, TOKENIZER_JSON, make_model, make_tokenizer

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
}
# In few numbers what they are in billions; what they leave out is as in all.
SHAPES: dict[str, dict[str, Any]] = {
    "smollm": {
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "hidden_size": 48,
        "tie_word_embeddings": True,
        "vocab_size": 333,
    },
    "tinyllama": {"num_attention_heads": 8, "num_key_value_heads": 2},
    "llama3": {"num_key_value_heads": 2, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "wide heads": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 48},
    "narrow heads": {"head_dim": 6, "tie_word_embeddings": True},
    "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.5}, "max_position_embeddings": 24},
    "yarn": {"rope_scaling": YARN},
    "yarn, all said": {
        "rope_scaling": YARN | {"beta_slow": 0.5, "attention_factor": 1.3, "truncate": False}
    },
    "yarn of DeepSeek": {"rope_scaling": YARN | {"mscale": 1.4, "mscale_all_dim": 0.6}},
    "yarn, bare": {"rope_scaling": {"type": "yarn", "factor": 2.0}},
}


@pytest.fixture(params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder as transformers saves it, with config.json as releases of both generations wrote."""
    shape = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    } | deepcopy(SHAPES[request.param])  # It adds to what it is given.
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if len(request.param) % 2:  # transformers 4 left those out that it did not know.
        del config["rope_parameters"]
        (tmp_path / "config.json").write_text(json.dumps(config | shape))
    return tmp_path


def make_tokens(num_rows: int, num_tokens: int) -> Tensor:
    return torch.randint(300, (num_rows, num_tokens), generator=torch.Generator().manual_seed(1))


def load_theirs(folder: Path) -> LlamaForCausalLM:
    llama: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(folder)
    return llama


def test_a_folder_of_others_gives_their_logits(folder: Path) -> None:
    model, llama, tokens = load_model(folder), load_theirs(folder), make_tokens(2, 60)
    with torch.no_grad():
        found, expected = model(tokens), llama(tokens).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert model.config.num_parameters() == sum(p.numel() for p in llama.parameters())


def test_a_cached_text_is_that_of_transformers(folder: Path) -> None:
    """Also beyond the context that `dynamic` stretches, where it is not that of a whole pass."""
    model, llama, tokens = load_model(folder).eval(), load_theirs(folder), make_tokens(1, 40)
    config = model.config
    cache = allocate_cache(config, 1, 64, torch.device("cpu"), torch.float32)
    assert cache.keys.shape[2] == llama.config.num_key_value_heads
    found = [model.predict(tokens[:, :20], cache)]
    found += [model.predict(tokens[:, n : n + 1], cache) for n in range(20, 40)]
    with torch.no_grad():
        answer = llama(tokens[:, :20], use_cache=True)
        expected = [answer.logits[:, -1]]
        for n in range(20, 40):
            past = answer.past_key_values
            answer = llama(tokens[:, n : n + 1], past_key_values=past, use_cache=True)
            expected.append(answer.logits[:, -1])
        whole = llama(tokens).logits[0, 20:]
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), atol=1e-4, rtol=0)
    is_as_a_whole = torch.allclose(torch.cat(found)[1:], whole, atol=1e-4)
    assert is_as_a_whole == (config.rope_type != "dynamic")


def test_rows_of_a_cache_do_not_depend_on_each_other(folder: Path) -> None:
    """transformers turns all rows of a batch as at the longest one's length."""
    model, lengths = load_model(folder).eval(), [34, 10, 21]
    device = torch.device("cpu")
    tokens = make_tokens(3, 64)
    together = allocate_cache(model.config, 3, 64, device, torch.float32)
    alone = [allocate_cache(model.config, 1, 64, device, torch.float32) for _ in lengths]
    together.set_lengths([])
    for row, length in enumerate(lengths):
        model.predict(tokens[row : row + 1, :length], alone[row])
        together.insert(alone[row], 0)
    for step in range(8):
        last = torch.stack([tokens[row, n + step] for row, n in enumerate(lengths)])[:, None]
        found = model.predict(last, together)
        for row, cache in enumerate(alone):
            expected = model.predict(last[row : row + 1], cache)
            torch.testing.assert_close(found[row : row + 1], expected, atol=1e-4, rtol=0)


def test_prompts_of_any_length_continue_as_in_transformers(folder: Path) -> None:
    """Read together, and by whichever way of computing a token is chosen here."""
    model, llama = load_model(folder), load_theirs(folder)
    generator = Generator(model, make_tokenizer(), ends=[299])
    prompts = [SENTENCES[1], "She", SENTENCES[0][:26]]
    assert len(make_tokenizer().encode(prompts[0]).ids) > 24  # What `dynamic` stretches.
    settings = Settings(do_sample=False, max_new_tokens=8)
    for prompt, found in zip(prompts, generator.complete(prompts, settings), strict=True):
        tokens = torch.tensor([make_tokenizer().encode(prompt).ids])
        with torch.no_grad():
            expected = llama.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=299,
                pad_token_id=0,
                suppress_tokens=[*range(300, llama.config.vocab_size)] or None,
            )
        assert list(found.tokens) == expected[0].tolist()


def test_a_training_step_has_the_gradients_of_transformers(folder: Path) -> None:
    model, llama, tokens = load_model(folder).train(), load_theirs(folder), make_tokens(2, 33)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    model(inputs, targets).backward()
    cross_entropy(llama(inputs).logits.flatten(0, 1), targets.flatten()).backward()
    expected = dict(llama.named_parameters())
    found = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight.grad, expected[name].grad, atol=1e-5, rtol=1e-3)


def test_saved_again_it_is_read_alike(folder: Path, tmp_path: Path) -> None:
    model, llama, tokens = load_model(folder), load_theirs(folder), make_tokens(2, 60)
    save_model(tmp_path / "ours", model, TOKENIZER_JSON)
    loaded, theirs = load_model(tmp_path / "ours"), load_theirs(tmp_path / "ours")
    assert loaded.config == model.config
    with torch.no_grad():
        expected = llama(tokens).logits
        torch.testing.assert_close(loaded(tokens), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(theirs(tokens).logits, expected, atol=1e-4, rtol=0)
    is_tied = theirs.lm_head.weight is theirs.model.embed_tokens.weight
    assert is_tied == model.config.tie_word_embeddings
    assert theirs.config.max_position_embeddings == llama.config.max_position_embeddings


def test_config_json_has_every_reader_s_keys() -> None:
    """rope_scaling for transformers 4 and vLLM, which do not know rope_parameters."""
    config = replace(
        CONFIG,
        num_key_value_heads=2,
        head_dim=24,
        rope_type="llama3",
        rope_theta=500000.0,
        rope_factor=8.0,
        rope_original_max_position_embeddings=32,
    )
    values = make_config_json(config, Boundaries(0), "float32")
    assert (values["num_key_value_heads"], values["head_dim"]) == (2, 24)
    assert (values["rope_theta"], values["rope_scaling"]) == (500000.0, LLAMA3)
    assert values["rope_parameters"] == LLAMA3 | {"rope_theta": 500000.0}
    for missing in ({"rope_parameters"}, {"rope_scaling"}, {"rope_theta"}):
        assert read_config_json({k: v for k, v in values.items() if k not in missing}) == config
    # transformers 4 divides max_position_embeddings by it where it stands there.
    yarn = replace(CONFIG, rope_type="yarn", rope_factor=4.0)
    scaling = make_config_json(yarn, Boundaries(0), "float32")["rope_scaling"]
    assert "original_max_position_embeddings" not in scaling
    assert "rope_scaling" not in make_config_json(CONFIG, Boundaries(0), "float32")


def test_the_shape_of_before_has_one_description() -> None:
    same = replace(CONFIG, num_key_value_heads=4, head_dim=16)
    assert same == CONFIG
    assert same.num_parameters() == CONFIG.num_parameters()
    wide = ModelConfig(300, 64, 2, 4, 96, 128, num_key_value_heads=1, head_dim=32)
    untied = replace(wide, tie_word_embeddings=False)
    for config in (wide, untied):
        assert config.num_parameters() == sum(p.numel() for p in Transformer(config).parameters())
    assert untied.flops_per_token(128) == wide.flops_per_token(128)
    products = 2 * 4 * 32 * 128  # L H K T.
    matrices = wide.num_parameters() - (2 * 2 + 1) * 64
    assert wide.flops_per_token(128) == 6 * matrices + 12 * products


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, tie_word_embeddings=False)])
def test_weights_drawn_one_by_one_are_those_of_a_new_model(config: ModelConfig) -> None:
    torch.manual_seed(3)
    whole = Transformer(config).state_dict()
    with torch.device("meta"):
        empty = Transformer(config)
    torch.manual_seed(3)
    drawn = dict(empty.draw_weights(torch.device("cpu")))
    assert ("lm_head.weight" in drawn) != config.tie_word_embeddings
    for name, weight in drawn.items():
        assert torch.equal(weight, whole[name])


@pytest.mark.parametrize("num_tokens", [1, 9])
@pytest.mark.parametrize("shares", [True, False])
def test_shared_heads_are_those_repeated(
    monkeypatch: pytest.MonkeyPatch, num_tokens: int, shares: bool
) -> None:
    """Also where a kernel cannot share, as that of CUDA for fp32."""
    monkeypatch.setattr("model.attention.shares_heads", lambda *_: shares)
    q, k, v = torch.randn(2, 6, num_tokens, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mask = None
    if num_tokens == 1:
        mask = torch.arange(9) <= torch.tensor([[5], [8]])
        mask = mask[:, None, None]
    expected = attend(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), mask)
    torch.testing.assert_close(attend(q, k, v, mask), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "model.num_key_value_heads is 3; expected a divisor of num_"),
        ({"num_key_value_heads": 0}, "model.num_key_value_heads is 0; expected a whole number abo"),
        ({"head_dim": 7}, "model.head_dim is 7; expected an even number, as RoPE turns pairs"),
        ({"head_dim": 6, "hidden_size": 66}, "model.hidden_size is 66; expected a multiple of num"),
        ({"tie_word_embeddings": 1}, "model.tie_word_embeddings is 1; expected one of True, False"),
        ({"rope_type": "longrope"}, "model.rope_type is 'longrope'; expected one of default, lin"),
        (
            {"rope_type": "linear"},
            "model.rope_factor is None; expected a number of at least 1 with",
        ),
        ({"rope_type": "yarn", "rope_factor": 0.5}, "model.rope_factor is 0.5; expected a number"),
        (
            {"rope_factor": 2.0},
            "model.rope_factor is 2.0, which model.rope_type=default does not r",
        ),
        (
            {"rope_type": "yarn", "rope_factor": 2.0, "rope_low_freq_factor": 2.0},
            "model.rope_low_freq_factor is 2.0, which model.rope_type=yarn does not read; leave it "
            "out, or set model.rope_type to llama3",
        ),
        (
            {"rope_type": "llama3", "rope_factor": 2.0, "rope_high_freq_factor": 1.0},
            "model.rope_type is llama3, which needs model.rope_high_freq_factor above model.rope_l",
        ),
        (
            {"rope_type": "yarn", "rope_factor": 2.0, "rope_theta": 1.0},
            "model.rope_type is yarn, which needs model.rope_theta above 1",
        ),
        (
            {"rope_type": "yarn", "rope_factor": 2.0, "rope_beta_fast": 0.5},
            "model.rope_type is yarn, which needs model.rope_beta_fast of at least",
        ),
        (
            {"rope_type": "dynamic", "rope_factor": 2.0, "head_dim": 2},
            "model.rope_type is dynamic, which needs heads wider than 2",
        ),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        replace(CONFIG, **changes)


def test_a_stretched_context_is_that_of_the_method() -> None:
    contexts = {
        "default": replace(CONFIG),
        "linear": replace(CONFIG, rope_type="linear", rope_factor=4),
        "dynamic": replace(CONFIG, rope_type="dynamic", rope_factor=2.5),
        "yarn": replace(CONFIG, rope_type="yarn", rope_factor=8),
        "llama3": replace(CONFIG, rope_type="llama3", rope_factor=8),
    }
    found = {name: config.context for name, config in contexts.items()}
    assert found == {"default": 128, "linear": 512, "dynamic": 320, "yarn": 1024, "llama3": 128}
    yarn = replace(CONFIG, rope_type="yarn", rope_factor=4)
    assert replace(yarn, rope_original_max_position_embeddings=32).context == 128
    assert make_model(yarn).config.context == 512
