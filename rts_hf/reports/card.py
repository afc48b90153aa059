"""The model card of a run, rendered from its folder alone."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping
from operator import mul
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rts_hf.files import read_json_object, write_text
from rts_hf.optim.schedules import STRATEGIES, AlphaSchedule, progress_at
from rts_hf.reports.comparison import section
from rts_hf.reports.confusion import class_results, confusion_split, measured_split
from rts_hf.reports.run_folder import COMPARISON_NAME, is_finite, perturbed_since, read_log, read_record, was_perturbed
from rts_hf.reports.text import (
    clean,
    code_block,
    counted,
    escaped,
    measured_share,
    number,
    share,
    spent,
    text,
    why_not_perturbed,
)
from rts_hf.training.faults import KINDS

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TEMPLATE = Path(__file__).with_name("card_template.md.jinja")
SMALL_DATA = 10_000  # training images below which the card calls the data small
LABEL_LIMIT = 30  # class names listed
LOG_LIMIT = 25  # rows of the training log
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
SPLITS = ("train", "validation", "test")

# Metrics in the order of the results table: their name there, and their type in the model index (None: not in it).
MEASURES: dict[str, tuple[str, str | None]] = {
    "loss": ("loss", None),
    "accuracy": ("accuracy", "accuracy"),
    "top5_accuracy": ("top-5 accuracy", "top_5_accuracy"),
    "f1_macro": ("macro F1", "f1"),
}

CLASS_LIMIT = 30  # classes in the table by class, of more those that were recognised worst
CITED = {"pugd": "tseng2021pugd", "sam": "foret2021sam", "asam": "kwon2021asam"}
FIGURES = {
    "history": "Loss and accuracy by epoch",
    "schedules": "Radius and scale: the schedules as set, and what perturbed updates used of them",
    "sharpness": "Sharpness of the loss along the run",
    "confusion": "Confusion matrix: which classes were taken for which",
}


def write_card(run_dir: str | Path, *, repo_id: str | None = None) -> Path:
    """Write the card of a run to ``README.md`` in its folder and return that path.

    Args:
        run_dir: A run folder; an existing card in it is replaced.
        repo_id: As for :func:`render_card`.

    Raises:
        FileNotFoundError: If ``run.json`` or ``trainer_state.json`` is missing.
        ValueError: If one is not JSON, or ``run.json`` has a format this version does not know.
    """
    path = Path(run_dir) / "README.md"
    write_text(path, render_card(run_dir, repo_id=repo_id))  # so that a card that is there is whole
    return path


def render_card(run_dir: str | Path, *, repo_id: str | None = None) -> str:
    """Return the model card of a run as Markdown with a YAML head. The same folder gives the same text.

    Every figure comes from ``run.json`` and ``trainer_state.json``, and those of other runs from ``comparison.json``,
    if it was one of a comparison; pictures are shown if they lie in ``figures/``.

    Args:
        run_dir: A run folder.
        repo_id: The Hub repository, ``owner/name``, that its snippets load the model from; None for the folder itself.

    Raises:
        FileNotFoundError: If one of the two files is missing.
        ValueError: If one is not JSON, or ``run.json`` has a format this version does not know.
    """
    from huggingface_hub import ModelCard

    folder = Path(run_dir)
    record, log = read_record(folder), read_log(folder)
    facts = {**_facts(record, log, folder), "repo_id": repo_id}
    card = ModelCard.from_template(_metadata(record), template_path=str(TEMPLATE), **facts)
    return str(card).rstrip() + "\n"


def _metadata(record: Mapping[str, Any]) -> ModelCardData:
    from huggingface_hub import EvalResult, ModelCardData

    # The Hub refuses empty names.
    model, data = (clean(name) or "unnamed" for name in (record["model"]["architecture"], record["data"]["name"]))
    optimizer = record["optimizer"]
    hub_dataset = _hub_dataset(record)
    # Never the name where there is no Hub id: the Hub reads a type as one, and a folder may bear any data set's name.
    dataset_type = hub_dataset or clean(_package(record) or "") or "local-folder"
    results, metrics = [], []
    for role in ("validation", "test"):
        for key, (name, kind) in MEASURES.items():
            value = _metrics(record, role).get(key)
            if kind is None or not is_finite(value):
                continue
            metrics.append(kind)
            results.append(
                EvalResult(
                    task_type="image-classification",
                    task_name="Image Classification",
                    dataset_type=dataset_type,
                    dataset_name=data,
                    dataset_split=_source_split(record, role),
                    metric_type=kind,
                    metric_name=f"{role} {name}",
                    metric_value=value,
                )
            )
    tags = ["image-classification", "timm", "transformers"]
    if optimizer.get("method"):
        tags += ["rts-pugd"] if optimizer["name"] == "rts_pugd" else [clean(optimizer["name"])]
        tags += ["sharpness-aware-minimization"]
    return ModelCardData(
        license=clean(record.get("license") or "") or None,
        library_name="timm",
        pipeline_tag="image-classification",
        base_model=_base_model(record),
        tags=tags,
        datasets=[hub_dataset] if hub_dataset else None,
        metrics=list(dict.fromkeys(kind for kind in metrics if kind != "top_5_accuracy")) or None,
        model_name=f"{model} on {data}, {clean(optimizer['name'])}" if results else None,
        eval_results=results or None,
    )


def _facts(record: Mapping[str, Any], log: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Gather what the template prints; whatever a user may have written is escaped or in a code block."""
    optimizer = record["optimizer"]
    total = optimizer.get("total_steps")
    log_rows = _log_rows(log)
    complete = record["status"] == "complete"
    switched = bool(optimizer.get("switch")) and optimizer["switch"].get("step") is not None
    sharpness = _sharpness(log) if switched else None
    # A picture may be left over from another run in the same folder.
    drawn = {"history": True, "schedules": bool(optimizer.get("method")), "sharpness": sharpness is not None}
    drawn["confusion"] = confusion_split(record) is not None
    compared = folder / COMPARISON_NAME
    comparison = read_json_object(compared) if compared.is_file() else None
    return {
        "comparison": None if comparison is None else section(comparison),
        "plain_sgd": None if comparison is None or optimizer["name"] == "sgd" else _plain_sgd(comparison),
        "run": escaped(record),
        "spent": spent(record),
        "complete": complete,
        "metrics": {split: _metrics(record, split) for split in SPLITS},
        "number": number,
        "share": share,
        "measured_share": measured_share,
        "counted": counted,
        "limits_of_splits": _limits_of_splits(record),
        "labels": [text(name) for name in record["data"]["label_names"]],
        "label_limit": LABEL_LIMIT,
        "small_data": SMALL_DATA,
        "hub_dataset": text(_hub_dataset(record) or ""),
        "package": text(_package(record) or ""),
        "never_switched": bool(optimizer.get("switch")) and not switched,
        "unit_from": _unit_from(optimizer.get("switch") or {}),
        "why_not_perturbed": why_not_perturbed(optimizer["switch"])
        if not switched and _unit_from(optimizer.get("switch") or {}) is not None
        else None,
        "kept_before_switch": _kept_before_switch(record) if complete and switched else None,
        "stopped_early": complete and bool(total) and record["updates"] < total,
        **_results(record),
        **_classes(record),
        "base_model": text(_base_model(record) or ""),
        "cited": CITED.get(optimizer.get("method") or ""),
        "skipped_updates": (record.get("faults") or {}).get("nonfinite_gradient") or 0,
        "settings": _settings(record),
        "faults": [(KINDS[kind], count) for kind, count in (record.get("faults") or {}).items() if count],
        "schedules": _schedules(record, log),
        "measured": _measured(optimizer.get("switch") or {}),
        "sharpness": sharpness,
        "log_rows": _thinned(log_rows),
        "log_is_thinned": len(log_rows) > LOG_LIMIT,
        "figures": [
            {"path": f"figures/{name}.png", "caption": caption}
            for name, caption in FIGURES.items()
            if drawn[name] and (folder / "figures" / f"{name}.png").is_file()
        ],
        "command_block": code_block(record["command"], "bash"),
        "arguments_block": code_block(json.dumps(record["arguments"], indent=2, ensure_ascii=False), "json"),
    }


def _metrics(record: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return what was measured on a split; nothing of one that is not there or was not measured yet."""
    return (record.get("metrics") or {}).get(split) or {}


def _plain_sgd(comparison: Mapping[str, Any]) -> float | None:
    """Return the mean test accuracy of SGD's runs in a comparison, each of as many gradients; None without any."""
    found = (row.get("test_accuracy") or [None] for row in comparison["methods"] if row["method"] == "sgd")
    return next((mean for mean, *_ in found), None)


def _source_split(record: Mapping[str, Any], role: str) -> str:
    """Return the source's split that a part is, or what it was held out of; its role where the record does not say."""
    source = (record["data"].get("split_sources") or {}).get(role) or {}
    split = clean(source.get("split") or "")
    return (f"{role} part held out of {split}" if source.get("held_out") else split) if split else role


def _limits_of_splits(record: Mapping[str, Any]) -> dict[str, int]:
    """Return how many images of a split were kept at most, where the run was told a limit."""
    data = record["arguments"].get("data") or {}
    limits = {role: data.get(f"max_{'train' if role == 'train' else 'eval'}_samples") for role in SPLITS}
    return {role: limit for role, limit in limits.items() if isinstance(limit, int)}


def _results(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results table: the measures that any split has, and one row for every split measured."""
    metrics = {split: _metrics(record, split) for split in SPLITS}
    keys = [key for key in MEASURES if any(key in values for values in metrics.values())]
    rows = [
        {
            "split": split,
            "images": (f"{number(values['images'])} of " if "images" in values else "")
            + number(record["data"]["splits"].get(split)),
            "values": [measured_share(values[key]) if key in values else share(None) for key in keys],
        }
        for split, values in metrics.items()
        if values
    ]
    return {"measures": [MEASURES[key][0] for key in keys], "results": rows}


def _unit_from(switch: Mapping[str, Any]) -> int | None:
    """Return after which update unit steps began that were not perturbed; None where there were none."""
    return switch.get("unit_step") if switch.get("kind") == "staged" else None


def _kept_before_switch(record: Mapping[str, Any]) -> int | None:
    """Return the update that the weights of a complete run come from if no perturbed update took part in them."""
    kept = (record.get("best") or {}).get("step")
    kept = record["updates"] if kept is None else kept
    step = record["optimizer"]["switch"]["step"]
    return kept if step and kept <= step else None


def _classes(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of the table by class; of many classes those that were recognised worst."""
    split = measured_split(record)
    found = [result for result in class_results(record, split) if result.images] if split else []
    if len(found) > CLASS_LIMIT:
        found = sorted(found, key=lambda result: (result.correct / result.images, result.name))[:CLASS_LIMIT]
    rows = [
        {
            "name": text(result.name),
            "images": result.images,
            "accuracy": result.accuracy,
            "taken_for": f"{text(result.taken_for[0])} ({number(result.taken_for[1])})" if result.taken_for else "–",
        }
        for result in found
    ]
    return {"class_split": split, "class_rows": rows, "class_limit": CLASS_LIMIT}


def _settings(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    optimizer, training = record["optimizer"], record["arguments"].get("training", {})
    batch = [training.get("per_device_train_batch_size"), training.get("gradient_accumulation_steps", 1)]
    batch.append(record["hardware"].get("processes"))
    rows: dict[str, Any] = {"optimizer": optimizer["name"]}
    if optimizer.get("method"):
        rows["base optimizer"] = optimizer.get("base")
    rows |= {name.replace("_", " "): optimizer.get(name) for name in ("learning_rate", "momentum", "weight_decay")}
    rows["learning rate schedule"] = training.get("lr_scheduler_type")
    if all(isinstance(part, int) for part in batch):
        rows["images an update (device × accumulation × processes)"] = math.prod(batch)
    rows |= {"epochs": record["epochs"], "updates": record["updates"], "seed": record["seed"]}
    rows |= {
        name.replace("_", " "): training[name]
        for name in ("label_smoothing_factor", "bf16", "fp16")
        if name in training
    }
    return [(name, text(value) if isinstance(value, str) else number(value)) for name, value in rows.items()]


def _schedules(record: Mapping[str, Any], log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for radius and scale the formula, its values at the landmarks of the run, and what the log holds."""
    optimizer = record["optimizer"]
    switch_step = (optimizer.get("switch") or {}).get("step")
    rows = []
    for name, symbol, key in (("radius", "α_r", "alpha_r"), ("scale", "α_s", "alpha_s")):
        setting = optimizer.get(name)
        if not setting:
            continue
        schedule = AlphaSchedule(setting["strategy"], beta_min=setting["beta_min"], beta_max=setting["beta_max"])
        steps = {"start": 0, "switch": switch_step, "end": max((record["updates"] or 0) - 1, 0)}
        values = {
            place: None if step is None else schedule(progress_at(step, optimizer.get("total_steps")))
            for place, step in steps.items()
        }
        used = [entry for entry in log if key in entry and was_perturbed(entry, optimizer)]
        logged = " to ".join(
            f"{number(entry[key])} (update {number(entry['step'])})" for entry in used[:1] + used[1:][-1:]
        )
        rows.append(
            {
                "name": f"{name} {symbol}",
                "strategy": setting["strategy"],
                "formula": STRATEGIES[setting["strategy"]].formula,
                "beta_min": setting["beta_min"],
                "beta_max": setting["beta_max"],
                "logged": logged or "none",
                **values,
            }
        )
    return rows


def _measured(switch: Mapping[str, Any]) -> dict[str, float] | None:
    """Return what a switch measured last, its base value and the threshold they give, or None before it measured."""
    state, settings = switch.get("state") or {}, switch.get("settings") or {}
    if switch.get("kind") == "gradient_variance" and state.get("initial_count") and state.get("norms"):
        base = state["initial_sum"] / state["initial_count"]
        return {"value": statistics.pvariance(state["norms"]), "base": base, "threshold": settings["gamma"] * base}
    if switch.get("kind") in ("generalization_gap", "staged") and state.get("base_count"):
        base = state["base_sum"] / state["base_count"]
        return {"value": state["gap"], "base": base, "threshold": settings["mu"] * base}
    return None


def _sharpness(log: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the mean over all perturbed updates that were logged, their number (None: unknown), and the last entry's.

    An entry holds the mean over those since the entry before, which may be more or fewer.
    """
    entries = [entry["sharpness"] for entry in log if "sharpness" in entry]
    counted = [(value, count) for value, count in zip(entries, perturbed_since(log), strict=True) if is_finite(value)]
    if not counted:
        return None
    values, counts = [value for value, _ in counted], [count for _, count in counted if count is not None]
    weights = counts if len(counts) == len(values) else None
    return {
        "entries": len(entries),
        "not_finite": len(entries) - len(values),
        "updates": sum(weights) if weights else None,
        "mean": statistics.fmean(values) if weights is None else math.fsum(map(mul, values, weights)) / sum(weights),
        "last": entries[-1],
    }


def _log_rows(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row an evaluation."""
    rows: list[dict[str, Any]] = []
    for entry in log:
        # A second evaluation at the same update measures the weights that were put back at the end.
        if "eval_loss" in entry and not (rows and rows[-1]["step"] == entry["step"]):
            row = {key: entry.get(key) for key in ("epoch", "step", "eval_loss", "eval_accuracy")}
            rows.append({**row, "loss": entry.get("train_loss")})
    return rows


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(rows) <= LOG_LIMIT:
        return rows
    return [rows[round(index * (len(rows) - 1) / (LOG_LIMIT - 1))] for index in range(LOG_LIMIT)]


def _base_model(record: Mapping[str, Any]) -> str | None:
    """Return the Hub id of the weights that a run started from, or None."""
    model = record["model"]
    named = str(model.get("base_model") or "") if model.get("pretrained") else ""
    return named if _HUB_ID.fullmatch(named) else None


def _package(record: Mapping[str, Any]) -> str | None:
    """Return the Python package that embedded data comes with, or None; older records do not name scikit-learn."""
    data = record["data"]
    return str(data.get("package") or "scikit-learn") if data.get("source") == "embedded" else None


def _hub_dataset(record: Mapping[str, Any]) -> str | None:
    """Return the data set's Hub id; the source of embedded data or of a local folder holds no slash."""
    source = str(record["data"].get("source") or "")
    return source if _HUB_ID.fullmatch(source) else None
