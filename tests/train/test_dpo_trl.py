"""DPO's loss, rewards and gradients are those that TRL's trainer computes of the same pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from model.adapters.config import AdapterConfig, Kind
from model.adapters.files import PREFIX, name_adapter
from model.adapters.layers import add_adapter, list_adapted, without_adapter
from model.adapters.peft_config import make_peft_config
from model.transformer import Transformer
from tests.model.test_loss import relative_error
from tests.model.test_model import make_llama
from tests.preferences import make_pairs, pack
from tests.tiny import TOKENIZER_JSON, make_model
from tests.train.test_dpo import BETA, compute_ours, differentiate, make_batch, make_models
from train.preferences.dpo import METRICS

trl: Any = pytest.importorskip("trl")
datasets: Any = pytest.importorskip("datasets")


def make_trainer(folder: Path, model: LlamaForCausalLM, **options: Any) -> Any:
    """TRL's trainer of a model; the one pair that it is made with is never trained on."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(TOKENIZER_JSON), eos_token="<|endoftext|>"
    )
    pair = {"prompt": ["The"], "chosen": [" dog"], "rejected": [" fox"]}
    return trl.DPOTrainer(
        model,
        args=trl.DPOConfig(
            str(folder), beta=BETA, report_to="none", use_cpu=True, bf16=False, save_strategy="no"
        ),
        train_dataset=datasets.Dataset.from_dict(pair),
        processing_class=tokenizer,
        **options,
    )


def compare(trainer: Any, model: Transformer, reference: Transformer) -> None:
    """The loss, the metrics and the gradients of some pairs."""
    pairs = make_pairs(6)
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    inputs = trainer.data_collator([dict(zip(keys, pair, strict=True)) for pair in pairs])
    loss = trainer.compute_loss(trainer.model, inputs)
    found = compute_ours(model, reference, make_batch(*pack(pairs, 64)))
    assert abs(found[0].item() - np.log(2)) > 0.01
    assert found[0].item() == pytest.approx(loss.item(), abs=1e-5)
    # Of a model in eval(), TRL keeps them under that name.
    theirs = [trainer._metrics["eval"][name][0] for name in METRICS]
    assert found[1:].tolist() == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    loss.backward()
    trained = {
        name.removeprefix(PREFIX).replace(".default", "").replace("vector.weight", "vector"): weight
        for name, weight in trainer.model.named_parameters()
        if weight.requires_grad
    }
    differentiate(model, found[0])
    ours = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained.keys() == ours.keys()
    for name, weight in ours.items():
        assert weight.grad is not None
        assert relative_error(weight.grad, trained[name].grad) < 1e-4, name


@pytest.mark.filterwarnings("ignore")  # Theirs.
def test_with_a_separate_reference(tmp_path: Path) -> None:
    model, reference = make_models()
    trainer = make_trainer(tmp_path, make_llama(model), ref_model=make_llama(reference))
    compare(trainer, model, reference)


@pytest.mark.filterwarnings("ignore")  # Theirs.
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_with_an_adapter_that_is_off_in_the_reference(kind: Kind, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config, model = AdapterConfig(kind, rank=4, alpha=8), make_model()
    values = make_peft_config(config, "base", is_tied=True) | {"inference_mode": False}
    trainer = make_trainer(tmp_path, make_llama(model), peft_config=peft.LoraConfig(**values))
    add_adapter(model, config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn(weight.shape)
    peft.set_peft_model_state_dict(trainer.model, name_adapter(model))
    trainer.model.eval()
    compare(trainer, model, model)
    with without_adapter(model):
        assert not any(part.is_on for part in list_adapted(model))
    assert all(part.is_on for part in list_adapted(model))
