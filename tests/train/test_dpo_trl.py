"""DPO's loss, rewards and gradients are those that TRL's trainer computes of the same pairs."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.model.test_loss import relative_error
from tests.model.test_model import make_llama
from tests.preferences import make_pairs, pack
from tests.tiny import TOKENIZER_JSON
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


@pytest.mark.filterwarnings("ignore")  # Theirs.
def test_with_a_separate_reference(tmp_path: Path) -> None:
    model, reference = make_models()
    pairs = make_pairs(6)
    trainer = make_trainer(tmp_path, make_llama(model), ref_model=make_llama(reference))
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    inputs = trainer.data_collator([dict(zip(keys, pair, strict=True)) for pair in pairs])
    llama = trainer.model
    loss = trainer.compute_loss(llama, inputs)
    found = compute_ours(model, reference, make_batch(*pack(pairs, 64)))
    assert found[0].item() == pytest.approx(loss.item(), abs=1e-5)
    theirs = [trainer._metrics["eval"][name][0] for name in METRICS]
    assert found[1:].tolist() == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    loss.backward()
    weights = dict(llama.named_parameters())
    differentiate(model, found[0])
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        assert relative_error(weight.grad, weights[name].grad) < 1e-4
