"""Finished runs to publish, and a client of this process that speaks to the tests' Hub alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
from hub_endpoints_for_tests import USER, WRITE_TOKEN
from hub_server_for_tests import Hub
from run_folder_for_tests import edit_json, write_run_folder
from training_for_tests import LABELS, make_model

from rts_hf.models.classifiers import save_model
from rts_hf.reports.card import write_card
from rts_hf.training.checkpoints import mark_complete

REPO = f"{USER}/digits"
PUBLISHED = ["README.md", "config.json", "figures/history.png", "model.safetensors", "run.json", "trainer_state.json"]
_TEMPLATES: list[tempfile.TemporaryDirectory[str]] = []  # of the run that most tests begin with, made once a process


def finished_run(folder: Path, model: Any = None, **changes: Any) -> Path:
    """Write a complete run with real weights, one picture and one checkpoint, and return its folder.

    Args:
        folder: Where.
        model: Its model; a small ViT if it is not given.
        **changes: Entries of ``run.json`` that differ, as in ``seed=3``.
    """
    if model is None and not changes:
        if not _TEMPLATES:
            _TEMPLATES.append(tempfile.TemporaryDirectory())
            _write_run(Path(_TEMPLATES[0].name, "run"), make_model())
        return Path(shutil.copytree(Path(_TEMPLATES[0].name, "run"), folder))
    return _write_run(folder, make_model() if model is None else model, **changes)


def _write_run(folder: Path, model: Any, **changes: Any) -> Path:
    write_run_folder(folder, epochs=2, switch_step=20)  # a short log: what is sent is searched line by line
    save_model(model, folder)

    def edit(record: dict[str, Any]) -> None:
        record["data"].update(label_names=list(LABELS), image_size=16)
        record["model"].update(architecture="test_vit", needs_rts_hf=False)
        record.update(changes)

    edit_json(folder / "run.json", edit)
    edit_json(
        folder / "trainer_state.json", lambda state: state.update(best_model_checkpoint="/scratch/me/checkpoint-4")
    )
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "history.png").write_bytes(b"\x89PNG picture")
    checkpoint = folder / "checkpoint-4"
    checkpoint.mkdir(exist_ok=True)
    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt"):
        (checkpoint / name).write_bytes(b"PK state")
    save_model(model, checkpoint)
    (checkpoint / "trainer_state.json").write_text('{"best_model_checkpoint": "/scratch/me/checkpoint-4"}')
    mark_complete(checkpoint)
    write_card(folder)
    return folder


@pytest.fixture(name="hub_here")
def hub_of_this_process(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The Hub that this process publishes to, logged in, without waiting between the client's own retries."""
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(huggingface_hub.utils._http, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.close_session()
