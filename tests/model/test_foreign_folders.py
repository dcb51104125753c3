"""Folders of others are read as transformers reads them; ours let others write <|endoftext|>."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.checkpoints.folder import load_model, save_model
from model.checkpoints.hugging_face import Boundaries
from model.checkpoints.seal import CheckpointError, seal, verify
from model.checkpoints.tokenizer import load_tokenizer
from model.convert.older import convert
from model.decode.settings import Settings
from model.generate import load_generator
from tests.model.test_checkpoint_folder import edit_json
from tests.tiny import CONFIG, TOKENIZER_JSON, make_model, make_tokenizer
from tests.vocabularies import build
from train.checkpoints.position import OPTIMIZER, RUN_CONFIG, TRAINING_STATE

EOS = "<|endoftext|>"
CHAT = "<|user|>naïve 2026<|end|>\n<|bot|>"
GREEDY = Settings(do_sample=False, max_new_tokens=12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of ours as it lies elsewhere: without a seal."""
    save_model(tmp_path / "model", make_model(), TOKENIZER_JSON)
    return tmp_path / "model"


def make_chat_folder(folder: Path, **changes: Any) -> Path:
    """A folder as transformers saves one whose tokenizer got three more special tokens."""
    ours = folder.with_name("ours")
    save_model(ours, make_model(), TOKENIZER_JSON)
    tokenizer = AutoTokenizer.from_pretrained(ours)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|user|>", "<|bot|>", "<|end|>"], "eos_token": "<|end|>"}
    )
    model = AutoModelForCausalLM.from_pretrained(ours)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    edit_json(folder / "tokenizer_config.json", **changes)
    return folder


def expect_transformers_ids(folder: Path, *texts: str) -> list[list[int]]:
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder, is_ours=False)
    found = [ours.encode(text).ids for text in texts]
    assert found == [theirs(text)["input_ids"] for text in texts]
    return found


def test_others_can_write_the_end_of_text(folder: Path) -> None:
    seal(folder)
    text = f"Hi{EOS}Yo"
    expected = [*make_tokenizer().encode("Hi").ids, 0, *make_tokenizer().encode("Yo").ids]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("Hi" + tokenizer.eos_token + "Yo")["input_ids"] == expected
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids == expected
    assert "split_special_tokens" not in json.loads((folder / "tokenizer_config.json").read_text())


def test_in_a_sealed_folder_text_is_never_a_boundary(folder: Path) -> None:
    (elsewhere,) = load_generator(folder, "cpu").complete([f"Hi{EOS}"], GREEDY)
    seal(folder)
    (ours,) = load_generator(folder, "cpu").complete([f"Hi{EOS}"], GREEDY)
    assert 0 in elsewhere.tokens[: elsewhere.num_prompt_tokens]
    assert 0 not in ours.tokens[: ours.num_prompt_tokens]
    assert ours.text.startswith(f"Hi{EOS}")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"split_special_tokens": True},
        {"add_bos_token": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": ...},
        {"tokenizer_class": "GPT2Tokenizer"},
        {"tokenizer_class": ...},
        {"pad_token": "the"},  # A token that only this file makes special,
        {"extra_special_tokens": ["<|user|>", "<|new|>", "!"]},  # and one with a new id.
        {"pad_token": {"__type": "AddedToken", "content": "<|pad|>", "lstrip": True}},
    ],
)
def test_a_chat_folder_makes_the_ids_of_transformers(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = make_chat_folder(tmp_path / "chat", **changes)
    chat, *_ = expect_transformers_ids(
        folder, CHAT, "", f"a{EOS} the other! <|new|>x  <|pad|>  y", "plain text, the one"
    )
    assert (300 in chat) == ("split_special_tokens" not in changes)


def test_what_a_tokenizer_json_adds_cuts_and_pads_is_as_in_transformers(tmp_path: Path) -> None:
    folder = make_chat_folder(tmp_path / "chat", add_bos_token=..., add_eos_token=...)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(
        single=f"{EOS} $A", pair=f"{EOS} $A $B:1", special_tokens=[(EOS, 0)]
    )
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(folder / "tokenizer.json"))
    (ids,) = expect_transformers_ids(folder, CHAT * 3)
    assert ids[0] == 0
    assert 4 < len(ids) < 40


def make_foreign_folder(folder: Path, name: str, **changes: Any) -> Path:
    """A folder as it may lie elsewhere, with a tokenizer that puts <s> or </s> before each text."""
    tokenizer = Tokenizer.from_str(build(name))
    begin = "<s>" if name == "sentencepiece" else "</s>"
    number = tokenizer.token_to_id(begin)
    config = replace(CONFIG, vocab_size=tokenizer.get_vocab_size())
    save_model(folder, make_model(config), build(name), Boundaries(number))
    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B:1", special_tokens=[(begin, number)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    edit_json(folder / "tokenizer_config.json", add_bos_token=..., **changes)
    return folder


@pytest.mark.parametrize("name", ["sentencepiece", "unigram"])
def test_ids_of_other_kinds_of_tokenizers_are_those_of_transformers(
    tmp_path: Path, name: str
) -> None:
    folder = make_foreign_folder(tmp_path / "model", name)
    texts = ("Once upon", "a  b", " lead", "\n\nx", "北京 🙂", "<s>x</s> y", "", "x <unk>z")
    assert len({ids[0] for ids in expect_transformers_ids(folder, *texts)}) == 1
    generator = load_generator(folder, "cpu")
    (completion,) = generator.complete(["Once upon"], GREEDY)
    assert completion.text == generator.tokenizer.decode(list(completion.tokens[1:]))
    # The space of a word is shown, but for the first word of a document.
    word = next(i for token, i in generator.tokenizer.get_vocab().items() if token[:2] == "▁t")
    for prompt in ("Once upon", ""):
        [draft] = generator.start([prompt], GREEDY)
        assert draft.add(word).startswith(" t" if prompt else "t")


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": ...},
        {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": None, "legacy": True},
        {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": True, "legacy": False},
        {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False},
    ],
)
def test_ids_and_texts_of_sentencepiece_are_those_of_transformers(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """As of TinyLlama: tokens with byte fallback, which transformers cuts anew."""
    folder = make_foreign_folder(tmp_path / "model", "sentencepiece", **changes)
    texts = ("Once upon", "a  b", " lead", "\n\nx", "北京 🙂", "<s>x</s> y", "", "x <unk>z", "▁x ▁")
    found = expect_transformers_ids(folder, *texts)
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder, is_ours=False)
    for ids in found:
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [plain.encode(text).ids for text in texts] != found
    assert load_generator(folder, "cpu").generate("Once", seed=1)


def test_a_sentencepiece_file_alone_has_a_remedy(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json; transformers makes that of it"):
        load_generator(folder, "cpu", tokenizer_json=TOKENIZER_JSON)


@pytest.mark.parametrize("name", ["XGLMTokenizer", "T5Tokenizer", None, 5])
def test_a_class_that_builds_a_tokenizer_of_its_own_is_refused(tmp_path: Path, name: Any) -> None:
    folder = make_foreign_folder(tmp_path / "model", "sentencepiece", tokenizer_class=name)
    with pytest.raises(CheckpointError, match=f"tokenizer_class is {name!r}, which may make other"):
        load_generator(folder, "cpu")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer_class is None"):
        load_generator(folder, "cpu")


@pytest.mark.parametrize(
    ("in_generation", "in_config"),
    [(302, 0), ([0, 302], 0), ([301, 302], 0), (None, 302), (None, [302, 301])],
)
def test_every_end_token_ends_a_text_as_in_transformers(
    tmp_path: Path, in_generation: Any, in_config: Any
) -> None:
    folder = make_chat_folder(tmp_path / "chat")
    edit_json(folder / "config.json", eos_token_id=in_config)
    if in_generation is None:
        (folder / "generation_config.json").unlink()
    else:
        edit_json(folder / "generation_config.json", eos_token_id=in_generation, do_sample=False)
    generator = load_generator(folder, "cpu")
    llama: Any = AutoModelForCausalLM.from_pretrained(folder)
    ends = in_config if in_generation is None else in_generation
    for end in ends if isinstance(ends, list) else [ends]:
        prompt = torch.tensor([generator.tokenizer.encode(CHAT).ids])
        with torch.no_grad():  # The token that the model will write first.
            written = llama.model(prompt).last_hidden_state[0, -1]
            for weight in (llama.model.embed_tokens.weight, generator.model.lm_head.weight):
                kept = weight.clone()
                weight[end] = written * 10
            expected = llama.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=12,
                **dict.fromkeys(("temperature", "top_k", "top_p")),
                do_sample=False,
            )
            (completion,) = generator.complete([CHAT], GREEDY)
            for weight in (llama.model.embed_tokens.weight, generator.model.lm_head.weight):
                weight.copy_(kept)
        assert list(completion.tokens) == expected[0].tolist()
        assert completion.tokens[-1] == end
        assert completion.finish_reason == "end_of_text"


def test_an_empty_prompt_begins_as_the_folder_says(folder: Path) -> None:
    edit_json(folder / "generation_config.json", bos_token_id=7)
    (completion,) = load_generator(folder, "cpu").complete([""], GREEDY)
    assert (completion.tokens[0], completion.num_prompt_tokens) == (7, 1)


@pytest.mark.parametrize("token", [["a"], "x", 1.5, -1, [True], {"id": 0}])
@pytest.mark.parametrize("key", ["eos_token_id", "bos_token_id"])
def test_token_ids_of_other_types_are_refused(folder: Path, key: str, token: Any) -> None:
    edit_json(folder / "generation_config.json", **{key: token})
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {key} is ") as caught:
        load_generator(folder, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"pad_token": ["a"]},
        {"eos_token": {"text": "a"}},
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"extra_special_tokens": 5},
        {"extra_special_tokens": [[]]},
    ],
)
def test_tokens_of_other_types_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    edit_json(folder / "tokenizer_config.json", **changes)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: "):
        load_generator(folder, "cpu")


def test_more_tokens_than_the_model_has_are_refused(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", extra_special_tokens=["<|new|>"])
    with pytest.raises(CheckpointError, match=r"has 301 tokens.* the model has 300"):
        load_generator(folder, "cpu")
    edit_json(folder / "tokenizer_config.json", extra_special_tokens=[])
    edit_json(folder / "generation_config.json", bos_token_id=300)
    with pytest.raises(CheckpointError, match="begins a text with token 300"):
        load_generator(folder, "cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "longrope", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "linear"}, "rope_parameters": None},
        {"rope_scaling": {"rope_type": "yarn", "factor": "2"}, "rope_theta": 10000.0},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": "x", "mscale_all_dim": 1}},
        {"rope_parameters": {"rope_type": ["linear"], "factor": 2.0}},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 500.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
        {"rope_parameters": [1]},
        {"rope_parameters": "x"},
        {"rope_scaling": 4.0},
        {"rope_parameters": {"rope_theta": float("nan")}, "rope_theta": ...},
        {"rope_parameters": {"rope_theta": float("inf")}, "rope_theta": ...},
    ],
)
def test_other_positions_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=r"config\.json: .*rope_"):
        load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": None, "rope_parameters": {"rope_theta": 500.0}, "rope_theta": ...},
        {"rope_scaling": {}, "rope_parameters": {}, "rope_theta": 500.0},
        {"rope_scaling": {"factor": 2.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},  # Beside rope_parameters of no kind.
        {"rope_scaling": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_theta": 500.0},
    ],
)
def test_positions_are_those_of_transformers(folder: Path, changes: dict[str, Any]) -> None:
    edit_json(folder / "config.json", **changes)
    tokens = torch.arange(1, 100)[None]
    llama = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        found = load_model(folder)(tokens)
        torch.testing.assert_close(found, llama(tokens).logits, atol=1e-4, rtol=0)


def make_old_checkpoint(folder: Path) -> None:
    """As the trainer of older releases saved it."""
    save_model(folder, make_model(), TOKENIZER_JSON)
    edit_json(folder / "tokenizer_config.json", split_special_tokens=True)
    (folder / TRAINING_STATE).write_text('{"step": 7}')
    (folder / OPTIMIZER).write_bytes(b"moments")
    (folder / RUN_CONFIG).write_text("{}")
    seal(folder)


def test_an_old_checkpoint_is_sampled_with_a_word_and_converted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = tmp_path / "my run" / "checkpoint-7", tmp_path / "new"
    make_old_checkpoint(old)
    before = load_generator(old, "cpu").complete([f"Hi{EOS}"], GREEDY)
    [told] = caplog.messages
    assert f"velocity convert '{old}' NEW" in told

    convert(old, new, TOKENIZER_JSON)
    verify(new)
    for path in old.iterdir():
        if path.name not in ("checksums.json", "tokenizer_config.json"):
            assert (new / path.name).read_bytes() == path.read_bytes()
    assert AutoTokenizer.from_pretrained(new)("Hi" + EOS)["input_ids"][-1] == 0
    assert load_generator(new, "cpu").complete([f"Hi{EOS}"], GREEDY) == before
    assert caplog.messages == [told]


def test_what_cannot_be_converted_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="models from elsewhere need no conversion"):
        convert(folder, tmp_path / "new", TOKENIZER_JSON)
    seal(folder)
    with pytest.raises(ValueError, match="already in the current format"):
        convert(folder, tmp_path / "new", TOKENIZER_JSON)
    old = tmp_path / "old"
    make_old_checkpoint(old)
    (old / OPTIMIZER).write_bytes(b"MOMENTS")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: damaged"):
        convert(old, tmp_path / "new", TOKENIZER_JSON)
    assert not (tmp_path / "new").exists()
    assert CONFIG.num_ids == 300  # What the ids above count on.
