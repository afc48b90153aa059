"""Tiny classifiers of every sort, and a Hub without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from rts_hf.models.classifiers import build_model

LABELS = ["plain", "spaß, \"quoted\" and 'so'", "日本語\nline", "3", ""]
DATA: dict[str, Any] = {"image_size": 32, "mean": (0.3, 0.4, 0.5), "std": (0.2, 0.25, 0.3), "interpolation": "bilinear"}
VARIANT = "resnet_micro_small"
RECORDED = "resnet_micro_small__import_rts_hf_first"


def build(name: str = "test_resnet", classes: int = 3, **options: Any) -> Any:
    return build_model(name, label_names=LABELS[:classes], **{**DATA, **options})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)).logits


@pytest.fixture(name="hub_cache")
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline Hub whose cache is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub_cache: Path, repository: str) -> Path:
    """The folder of a repository's only revision in the cache."""
    entry = hub_cache / f"models--{repository.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("0" * 40)
    (entry / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return entry / "snapshots" / ("0" * 40)
