"""A script of transformers' Trainer, with RTSTrainer and RTSTrainingArguments put in their place."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor
from training_for_tests import LABELS, SIZE, Images, make_model
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from rts_hf import RTSTrainer, RTSTrainingArguments, build_model, collate, load_data
from rts_hf.data.batches import collate_for_device

CLASSES = {Trainer: TrainingArguments, RTSTrainer: RTSTrainingArguments}
# What a script sets for both
SHARED = {
    "learning_rate": 3e-3, "adam_beta1": 0.8, "adam_beta2": 0.95, "max_grad_norm": 0.5, "num_train_epochs": 2,
    "per_device_train_batch_size": 4, "eval_strategy": "epoch", "save_strategy": "epoch", "logging_steps": 1,
    "seed": 3, "use_cpu": True, "disable_tqdm": True,
}  # fmt: skip

# What only ours has; the Trainer's AdamW is torch's fused one
OWN = {"opt": "adamw", "opt_args": {"fused": True}}


def make_vit() -> Any:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=SIZE,
        patch_size=8, num_labels=len(LABELS), hidden_dropout_prob=0.1,
    )  # fmt: skip
    return ViTForImageClassification(config)


def test_both_have_the_same_defaults_but_for_two() -> None:
    ours = {field.name: (field.default, field.default_factory) for field in fields(RTSTrainingArguments)}
    differing = {f.name: ours[f.name][0] for f in fields(TrainingArguments) if ours[f.name] != (f.default, MISSING)}
    factories = {f.name for f in fields(TrainingArguments) if f.default_factory is not MISSING}
    assert {name: default for name, default in differing.items() if name not in factories} == {
        "learning_rate": None,
        "max_grad_norm": 0.0,
    }


def test_nothing_else_of_the_arguments_differs_when_they_are_made(tmp_path: Path) -> None:
    plain, ours = (kind(output_dir=str(tmp_path), use_cpu=True).to_dict() for kind in CLASSES.values())
    differing = {name for name in plain if ours[name] != plain[name]}
    assert differing == {"learning_rate", "max_grad_norm"}
    for kind in CLASSES.values():
        kind(output_dir=str(tmp_path), use_cpu=True, do_train=True, do_eval=True, do_predict=True, eval_strategy="no")


def run(kind: type, folder: Path, model: Any, resume: str | None = None, **settings: Any) -> dict[str, Any]:
    """Return the figures of a script: train, evaluate, save, predict."""
    own = OWN if kind is RTSTrainer else {}
    trainer = kind(
        model=model,
        args=CLASSES[kind](output_dir=str(folder), **{**SHARED, **own, **settings}),
        train_dataset=Images(),
        eval_dataset=Images(12, seed=1),
    )
    result = trainer.train(resume_from_checkpoint=resume)
    evaluated = trainer.evaluate()
    trainer.save_model(str(folder / "saved"))
    predicted = trainer.predict(Images(9, seed=2))
    return {
        "history": trainer.state.log_history,
        "train_loss": result.training_loss,
        "eval_loss": evaluated["eval_loss"],
        "test_loss": predicted.metrics["test_loss"],
        "logits": torch.as_tensor(predicted.predictions),
        "weights": [p.detach().clone() for p in model.parameters()],
        "saved": [p.detach() for p in type(model).from_pretrained(folder / "saved").parameters()],
    }


def assert_alike(ours: dict[str, Any], plain: dict[str, Any]) -> None:
    assert len(ours["history"]) == len(plain["history"])
    for mine, theirs in zip(ours["history"], plain["history"], strict=True):
        assert set(theirs) <= set(mine)  # and figures that the other does not have
        # the Trainer's own train_loss of a resumed run forgets what was before
        measured = [name for name in theirs if not name.endswith(("runtime", "per_second", "train_loss"))]
        assert [mine[name] for name in measured] == pytest.approx([theirs[name] for name in measured], abs=1e-6)
    for name in ("eval_loss", "test_loss"):
        assert ours[name] == pytest.approx(plain[name], abs=1e-6)
    for name in ("logits", "weights", "saved"):
        torch.testing.assert_close(ours[name], plain[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "weight_decay"),
    [
        (make_model, 0.0),  # timm's own list of what is not decayed differs from the Trainer's
        (make_vit, 0.0),
        (make_vit, 0.1),
    ],
)
def test_a_swapped_script_has_the_same_numbers(tmp_path: Path, make: Callable[[], Any], weight_decay: float) -> None:
    results: dict[type, list[dict[str, Any]]] = {}
    for kind in CLASSES:
        folder = tmp_path / kind.__name__
        whole = run(kind, folder, make(), weight_decay=weight_decay)
        resumed = run(kind, folder, make(), resume=str(folder / "checkpoint-7"), weight_decay=weight_decay)
        results[kind] = [whole, resumed]
    whole, resumed = results[RTSTrainer]
    assert_alike(whole, results[Trainer][0])
    assert all(map(torch.equal, whole["weights"], resumed["weights"]))
    assert whole["logits"].equal(resumed["logits"])
    if make is make_model:  # the Trainer passes over a ViT's weights, which are saved under the names of old releases
        assert_alike(resumed, results[Trainer][1])
    assert results[RTSTrainer][0]["train_loss"] == pytest.approx(results[Trainer][0]["train_loss"], abs=1e-6)


def test_the_best_weights_come_back_by_the_loss_as_the_trainers_do(tmp_path: Path) -> None:
    settings = {"load_best_model_at_end": True, "learning_rate": 0.3, "weight_decay": 0.0}
    assert_alike(*(run(kind, tmp_path / kind.__name__, make_model(), **settings) for kind in (RTSTrainer, Trainer)))


def test_the_best_weights_of_a_model_with_other_names_in_its_file_come_back(tmp_path: Path) -> None:
    settings = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    found = run(RTSTrainer, tmp_path, make_vit(), **settings)
    first, second, *_ = [entry["eval_loss"] for entry in found["history"] if "eval_loss" in entry]
    assert second < first == pytest.approx(found["eval_loss"], rel=1e-6)


def a_table() -> datasets.Dataset:
    """Return rows whose transform makes more than the model takes, and columns that it does not know."""

    def transform(rows: dict[str, list[Any]]) -> dict[str, Any]:
        seen.append(sorted(rows))
        pixels = torch.tensor(rows["pixel_values"]).reshape(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE)
        return {"pixel_values": [*pixels.contiguous()], "labels": rows["labels"], "made": rows["labels"]}

    seen: list[list[str]] = []
    count = 8
    columns = {
        "pixel_values": [index / count for index in range(count)],
        "labels": [index % len(LABELS) for index in range(count)],
        "name": [str(index) for index in range(count)],
    }
    table = datasets.Dataset.from_dict(columns).with_transform(transform)
    table.seen = seen
    return table


@pytest.mark.parametrize("remove_unused_columns", [True, False])
def test_a_table_with_a_transform_loses_its_columns_as_with_the_trainer(
    tmp_path: Path, remove_unused_columns: bool
) -> None:
    found = []
    for kind in CLASSES:
        keys: set[str] = set()

        def collator(rows: list[dict[str, Any]], keys: set[str] = keys) -> dict[str, Tensor]:
            keys.update(*rows)
            return {
                name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in ("pixel_values", "labels")
            }

        table = a_table()
        settings = {**SHARED, "eval_strategy": "no", "save_strategy": "no", "max_steps": 2}
        own = OWN if kind is RTSTrainer else {}
        arguments = CLASSES[kind](
            output_dir=str(tmp_path), remove_unused_columns=remove_unused_columns, **{**settings, **own}
        )
        trainer = kind(model=make_vit(), args=arguments, train_dataset=table, data_collator=collator)
        trainer.train()
        collated = set(keys)
        evaluated = trainer.evaluate(table)["eval_loss"]
        found.append((collated, {tuple(columns) for columns in table.seen}, round(evaluated, 6)))
    assert found[0] == found[1]
    assert found[1][0] == {"pixel_values", "labels", "made"}
    assert {"name" in columns for columns in found[1][1]} == {not remove_unused_columns}


class Batches(TrainerCallback):
    """Keeps the loader's collator."""

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        self.collator = train_dataloader.collate_fn


@pytest.mark.parametrize(
    ("settings", "collator"),
    [
        ({}, collate_for_device),
        ({"dataloader_num_workers": 2}, collate_for_device),
        ({"accelerator_config": {"dispatch_batches": True}}, collate),
    ],
    ids=["here", "workers", "dispatched"],
)
def test_this_packages_own_data_stay_whole_batches(settings: dict[str, Any], collator: Any, tmp_path: Path) -> None:
    data = load_data("digits", image_size=8, max_train_samples=24, max_eval_samples=12)
    shared = {name: value for name, value in SHARED.items() if not name.startswith("adam")}
    arguments = RTSTrainingArguments(output_dir=str(tmp_path), switch="fixed", switch_at=0, **{**shared, **settings})
    trained = []
    for given in (collate, lambda samples: collate(list(samples))):  # the second is finished sample by sample
        torch.manual_seed(0)
        model = build_model("test_resnet", label_names=data.label_names, image_size=8, mean=data.mean, std=data.std)
        batches = Batches()
        trainer = RTSTrainer(
            model, arguments, train_dataset=data.train, eval_dataset=data.validation, data_collator=given,
            callbacks=[batches],
        )  # fmt: skip
        trainer.train()
        assert (batches.collator is collator) == (given is collate)
        trained.append((trainer.evaluate()["eval_loss"], dict(model.state_dict())))
    assert arguments.remove_unused_columns
    assert trained[0][0] == trained[1][0]
    assert all(torch.equal(weight, trained[1][1][name]) for name, weight in trained[0][1].items())


def test_low_rank_adapters_train_resume_and_predict_as_with_the_trainer(tmp_path: Path) -> None:
    import peft  # here: with it transformers takes a second more to import

    def make() -> Any:
        config = peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=["classifier"])
        vit = make_vit()
        torch.manual_seed(1)
        return peft.get_peft_model(vit, config)

    found = []
    for kind in (RTSTrainer, Trainer):
        own = {**OWN, "weight_decay": 0.0} if kind is RTSTrainer else {"weight_decay": 0.0}
        for resume in (None, str(tmp_path / kind.__name__ / "checkpoint-7")):
            model = make()
            trainer = kind(
                model=model,
                args=CLASSES[kind](output_dir=str(tmp_path / kind.__name__), **{**SHARED, **own}),
                train_dataset=Images(),
                eval_dataset=Images(12, seed=1),
            )
            trainer.train(resume_from_checkpoint=resume)
            logits = torch.as_tensor(trainer.predict(Images(9, seed=2)).predictions)
            found.append([trainer.evaluate()["eval_loss"], logits, [p.detach().clone() for p in model.parameters()]])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=0, atol=1e-6)
