"""Checkpoints that anyone may open: no pickle beyond what ``torch.load(weights_only=True)`` takes, and no token."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME


class SafeSavingTrainer(Trainer):
    """A Trainer whose folders hold safetensors, JSON, and tensors and plain values.

    transformers also writes its training arguments, as a pickle that only ``weights_only=False`` opens and that nothing
    reads: it is left out. Of the random generators' states it writes numpy's as an array, which asks for numpy's own
    classes when it is loaded: it is written as a list.
    """

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        super()._save(output_dir, *args, **kwargs)
        self._leave_out_arguments(output_dir)

    def _push_from_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        pushed = super()._push_from_checkpoint(*args, **kwargs)
        self._leave_out_arguments(self.args.output_dir)
        return pushed

    def _leave_out_arguments(self, folder: str | None) -> None:
        if self.args.should_save:
            Path(str(self.args.output_dir if folder is None else folder), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        name = "rng_state.pth" if self.args.world_size <= 1 else f"rng_state_{self.args.process_index}.pth"
        path = Path(output_dir, name)
        state = torch.load(path, weights_only=False)  # written a moment ago, by this process
        kind, keys, *rest = state["numpy"]
        state["numpy"] = (kind, [int(key) for key in keys], *rest)
        part = path.with_suffix(".part")  # a run that is killed now must not leave half a file under the name
        torch.save(state, part)
        os.replace(part, path)
