"""Write run folders as training leaves them, with invented but plausible numbers, for tests of figures and cards."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

UPDATES_PER_EPOCH = 20

COSINE_RADIUS = {"strategy": "cosine_annealing", "beta_min": 0.1, "beta_max": 1.0}
HEATING_RADIUS = {"strategy": "inverse_cosine_heating", "beta_min": 0.02, "beta_max": 2.0}
PLAIN_ONE = {"strategy": "constant", "beta_min": 0.0, "beta_max": 1.0}
NO_SCALE = {"strategy": "constant", "beta_min": 0.0, "beta_max": 0.0}
VARIANCE = {"window": 10, "init_steps": 10, "gamma": 0.2}
GAP = {"base_epochs": 3, "every": 3, "mu": 2.0}

# What each kind of run changes; everything else is as in `rts_pugd`.
KINDS: dict[str, dict[str, Any]] = {
    "rts_pugd": {"radius": HEATING_RADIUS, "scale": COSINE_RADIUS, "switch": "gradient_variance", "switch_step": 120},
    "gap_switch": {"radius": COSINE_RADIUS, "switch": "generalization_gap", "switch_step": 180},
    "late_switch": {"switch": "fixed", "settings": {"at": 0.97}, "switch_step": 388},
    "never_switched": {"switch": "gradient_variance", "switch_step": None},
    "pugd": {"name": "pugd", "radius": PLAIN_ONE, "switch": "fixed", "settings": {"at": 0}, "switch_step": 0},
    "sam": {"name": "sam", "method": "sam", "radius": PLAIN_ONE, "scale": NO_SCALE, "switch": "fixed",
            "settings": {"at": 0}, "switch_step": 0},
    "every_fourth": {"perturb_every": 4, "switch": "fixed", "settings": {"at": 100}, "switch_step": 100},
    "sgd": {"name": "sgd", "method": None},
    "one_epoch": {"epochs": 1, "switch": "fixed", "settings": {"at": 10}, "switch_step": 10},
    "no_evaluation": {"evaluated": False, "switch_step": 120},
    "no_logs": {"epochs": 1, "logged": False, "evaluated": False, "switch_step": None},
    "diverged": {"diverges_after": 260, "switch_step": 120},
    "blew_up": {"diverges_after": 260, "diverged_loss": 3.2e9, "switch_step": 120},
    "kept_last": {"best_kept": False, "switch_step": 120},
    "by_class": {"by_class": True, "switch_step": 120},
}  # fmt: skip


def write_run_folder(folder: Path, kind: str = "rts_pugd", *, seed: int = 0, **changes: Any) -> Path:
    """Write ``run.json`` and ``trainer_state.json`` of an invented run and return the folder.

    Args:
        folder: Where to write; made if it is not there.
        kind: A name in :data:`KINDS`.
        seed: Draws other noise onto the curves.
        **changes: Settings that differ from those of ``kind``.
    """
    setting = {
        "name": "rts_pugd", "method": "pugd", "radius": COSINE_RADIUS, "scale": PLAIN_ONE, "perturb_every": 1,
        "switch": "gradient_variance", "settings": None, "switch_step": 120, "epochs": 20, "log_every": 5,
        "logged": True, "evaluated": True, "diverges_after": math.inf, "diverged_loss": math.nan, "best_kept": True,
        "by_class": False,
        **KINDS[kind], **changes,
    }  # fmt: skip
    setting["total_steps"] = setting["epochs"] * UPDATES_PER_EPOCH
    history = _log_history(setting, random.Random(seed))
    folder.mkdir(parents=True, exist_ok=True)
    state = {"epoch": float(setting["epochs"]), "global_step": setting["total_steps"], "log_history": history}
    _write_json(folder / "trainer_state.json", state)
    _write_json(folder / "run.json", _record(setting, history, seed))
    return folder


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Read a JSON file, let ``change`` alter its content in place, and write it back."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    _write_json(path, content)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _alpha(schedule: dict[str, Any], progress: float) -> float:
    low, high = schedule["beta_min"], schedule["beta_max"]
    falling = low + (high - low) * (math.cos(math.pi * progress / 2) if progress < 1 else 0.0)  # β_min to the last bit
    return {"constant": high, "cosine_annealing": falling, "inverse_cosine_heating": 1 / max(falling, 1e-12)}[
        schedule["strategy"]
    ]


def _log_history(setting: dict[str, Any], rng: random.Random) -> list[dict[str, float]]:
    history: list[dict[str, float]] = []
    total, evaluations = setting["total_steps"], 0
    rises: list[float] = []  # of the loss, by the perturbed updates since the entry before
    for step in range(1, total + 1):
        epoch, done = step / UPDATES_PER_EPOCH, step / total
        switched = setting["switch_step"] is not None and step > setting["switch_step"]
        perturbs = setting["method"] is not None and switched
        perturbs = perturbs and (step - 1 - setting["switch_step"]) % setting["perturb_every"] == 0
        evaluations += 2 if perturbs else 1
        loss = 2.3 * math.exp(-5 * done) + 0.04 + (0.02 if switched else 0) + 0.05 * rng.random()
        accuracy = min(1.0, 1 - 0.9 * math.exp(-7 * done) + 0.02 * (rng.random() - 0.5))
        rise = 0.02 + 0.05 * (1 - done) + 0.06 * (rng.random() - 0.4)
        if step > setting["diverges_after"]:
            loss, rise = setting["diverged_loss"], setting["diverged_loss"] * rise
        rises += [rise] if perturbs else []
        if setting["logged"] and step % setting["log_every"] == 0:
            entry = {"step": step, "epoch": epoch, "loss": loss, "accuracy": accuracy}
            entry |= {"learning_rate": 0.05 * (1 + math.cos(math.pi * done)), "gradient_evaluations": evaluations}
            if setting["method"] is not None:
                progress = min((step - 1) / (total - 1), 1.0)
                radius = _alpha(setting["radius"], progress)
                entry |= {"phase": int(switched), "alpha_r": radius, "alpha_s": _alpha(setting["scale"], progress)}
                entry |= {"gradient_norm": 3 * math.exp(-3 * done) + 0.3 * rng.random(), "switch_step": -1}
                entry["epsilon_norm"] = radius if perturbs else 0.0
                if rises:
                    entry["sharpness"] = sum(rises) / len(rises)
            rises = []
            history.append(entry)
        if setting["evaluated"] and step % UPDATES_PER_EPOCH == 0:
            entry = {"step": step, "epoch": epoch, "eval_loss": 2.2 * math.exp(-4 * done) + 0.09 + 0.04 * rng.random()}
            entry["eval_accuracy"] = min(1.0, 0.985 - 0.85 * math.exp(-6 * done) + 0.02 * (rng.random() - 0.5))
            entry["eval_f1_macro"] = entry["eval_accuracy"] - 0.002
            past = [logged for logged in history if "loss" in logged and logged["epoch"] > epoch - 1]
            for key in ("loss", "accuracy") if past else ():
                entry[f"train_{key}"] = sum(logged[key] for logged in past) / len(past)
            entry["gradient_evaluations"] = evaluations
            history.append(entry)
    history.append({"step": total, "epoch": float(setting["epochs"]), "train_loss": 0.4, "train_runtime": 41.5})
    return history


def _record(setting: dict[str, Any], history: list[dict[str, float]], seed: int) -> dict[str, Any]:
    total, two_pass = setting["total_steps"], setting["method"] is not None
    step = setting["switch_step"]
    last_training = next((entry for entry in reversed(history) if "loss" in entry), None)
    evaluations = [entry for entry in history if "eval_accuracy" in entry]
    best = max(evaluations, key=lambda entry: entry["eval_accuracy"], default=None)
    validation = best and {key.removeprefix("eval_"): best[key] for key in best if key.startswith("eval_")}
    return {
        "format": 1,
        "command": f"accelerate launch scripts/train.py --opt {setting['name']} --seed {seed}",
        "arguments": {
            "model": {"model": "resnet18_small", "pretrained": False, "checkpoint": None, "drop_path_rate": 0.0},
            "data": {"dataset": "digits", "validation_fraction": 0.15, "augment": True},
            "training": {
                "output_dir": "runs/digits", "num_train_epochs": setting["epochs"], "lr_scheduler_type": "cosine",
                "per_device_train_batch_size": 64, "gradient_accumulation_steps": 1, "label_smoothing_factor": 0.1,
                "warmup_steps": 0, "seed": seed, "bf16": False,
            },
        },
        "versions": {
            "python": "3.11.9", "torch": "2.14.1", "timm": "1.0.31", "transformers": "5.23.0", "accelerate": "1.15.0",
            "datasets": "5.2.0", "rts_hf": "0.1.0",
        },
        "seed": seed,
        "hardware": {"device": "cpu", "processes": 1, "cpu_threads": 2, "accelerator": None},
        "data": {
            "name": "digits", "source": "embedded", "label_names": [str(digit) for digit in range(10)],
            "image_size": 16, "splits": {"train": 1277, "validation": 160, "test": 360}, "skipped": {},
            "split_sources": {
                "train": {"split": "train", "held_out": False}, "validation": {"split": "train", "held_out": True},
                "test": {"split": "test", "held_out": False},
            },
            "mean": [0.3054] * 3, "std": [0.376] * 3, "normalisation": "digits",
        },
        "model": {
            "architecture": "resnet18_small", "parameters": 11173962, "pretrained": False, "checkpoint": None,
            "needs_rts_hf": True,
        },
        "optimizer": {
            "name": setting["name"], "base": "sgd", "learning_rate": 0.1, "weight_decay": 0.0005, "momentum": 0.9,
            "total_steps": total, "method": setting["method"],
            "radius": copy.deepcopy(setting["radius"]) if two_pass else None,
            "scale": copy.deepcopy(setting["scale"]) if two_pass else None,
            "perturb_every": setting["perturb_every"] if two_pass else None,
            "switch": _switch(setting) if two_pass else None,
        },
        "updates": total,
        "gradient_evaluations": _gradient_evaluations(setting),
        "epochs": float(setting["epochs"]),
        "seconds": 41.53,
        "resumed_at": [],
        "metrics": {
            "train": {"loss": last_training["loss"], "accuracy": last_training["accuracy"]} if last_training else {},
            "validation": validation or {},
            "test": {"loss": 0.1113, "accuracy": 0.9778, "f1_macro": 0.9771, "top5_accuracy": 1.0},
        },
        "classes": {"test": {"images": [36] * 10, "correct": [35] * 8 + [36] * 2, "confusion": _confusion()}}
        if setting["by_class"] else {},
        "best": {"metric": "accuracy", "value": best["eval_accuracy"], "step": best["step"]}
        if best and setting["best_kept"] else None,
        "warnings": [] if not two_pass or step is not None else ["The switch never fired: no update was perturbed."],
        "status": "complete",
    }  # fmt: skip


def _confusion() -> list[list[int]]:
    """Of each of the first eight digits one is taken for the next one."""
    return [[35 * (j == i) + (j == i + 1) if i < 8 else 36 * (j == i) for j in range(10)] for i in range(10)]


def _gradient_evaluations(setting: dict[str, Any]) -> int:
    total: int = setting["total_steps"]
    if setting["method"] is None or setting["switch_step"] is None:
        return total
    return total + math.ceil((total - setting["switch_step"]) / setting["perturb_every"])


def _switch(setting: dict[str, Any]) -> dict[str, Any]:
    kind, step = setting["switch"], setting["switch_step"]
    fired = step is not None
    state: dict[str, Any] = {"fired": fired}
    if kind == "gradient_variance":
        low, high = (1.29, 1.31) if fired else (1.0, 1.6)
        state |= {"norms": [low, high] * 5, "steps_seen": step or setting["total_steps"]}
        state |= {"initial_sum": 0.0625, "initial_count": 1}
    elif kind == "generalization_gap":
        state |= {"epochs_seen": 9, "base_sum": 0.06, "base_count": 3, "gap": 0.047 if fired else 0.031}
    settings = setting["settings"] or {"gradient_variance": VARIANCE, "generalization_gap": GAP}[kind]
    epoch = step / UPDATES_PER_EPOCH if fired else None
    return {
        "kind": kind, "settings": dict(settings), "fired": fired, "state": state, "step": step, "epoch": epoch,
    }  # fmt: skip
