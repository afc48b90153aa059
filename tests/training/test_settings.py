"""Arguments as plain values: what matters, and no secret."""

import json
from pathlib import Path

from rts_hf import DataArguments, ModelArguments, RTSTrainingArguments
from rts_hf.training.arguments import settings_of


def test_settings_hold_what_matters_and_no_secret(tmp_path: Path) -> None:
    arguments = RTSTrainingArguments(output_dir=str(tmp_path), use_cpu=True, hub_token="hf_secret", warmup_steps=7)
    settings = settings_of(arguments)
    assert settings["warmup_steps"] == 7
    assert settings["weight_decay"] == 5e-4
    assert "gradient_accumulation_steps" not in settings  # at transformers' default
    assert "hf_secret" not in json.dumps(settings)
    assert str(tmp_path) not in json.dumps(settings)
    assert settings_of(ModelArguments(pretrained=True), only_changed=True) == {
        "model": "resnet_micro_small", "pretrained": True,
    }  # fmt: skip
    assert settings_of(DataArguments(dataset="x"), only_changed=True) == {"dataset": "x"}
