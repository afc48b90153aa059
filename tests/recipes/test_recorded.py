"""The recipes: their figures are the records', the command takes them, and every one of them trains."""

import csv
import json
import math
import re
import shlex
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets_for_tests import write_preset
from evidence.records import Evidence, read_evidence
from timm.optim import create_optimizer_v2

from rts_hf import (
    PAPER,
    RECIPES,
    RTSPUGD,
    CommandArguments,
    DataArguments,
    ModelArguments,
    RTSTrainingArguments,
    recipe_arguments,
    train,
)
from rts_hf.models.classifiers import build_model
from rts_hf.optim.switches import SWITCHES
from rts_hf.recipes.recipe import Measured
from rts_hf.recipes.recorded import find_recipe, recipes_table
from rts_hf.runs.command_line import parse_arguments
from rts_hf.runs.record import command_line, describe_recipe
from rts_hf.runs.stages import create_trainer, load_run_data
from rts_hf.training.arguments import settings_of
from rts_hf.training.optimizers import TWO_PASS_FIELDS

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "model_cards" / "evidence"
RECORDED = [name for name, recipe in RECIPES.items() if recipe.recorded is not None]
# From the authors' published run records: of each method the rows with the best accuracies, of plain PUGD all.
with (Path(__file__).parent / "recorded_rows.csv").open(encoding="utf-8") as file:
    ROWS = list(csv.DictReader(file))
METHODS = {"radius": "r", "scale": "s", "radius_scale": "rs", "timing_gap": "t-gap", "timing_variance": "t-var",
           "pugd": "pugd", "resnet18": "r", "vit_base": "r", "deit_base": "r"}  # fmt: skip


@pytest.fixture(scope="module")
def data_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny data sets with the columns, features and file names of the repositories; and a cache for them."""
    folder = tmp_path_factory.mktemp("data")
    names = ("cifar10", "cifar100")
    (folder / "cache").mkdir()
    return {
        "digits": "digits",
        "photo_patches": "photo_patches",
        "cache": str(folder / "cache"),
        **{name: str(write_preset(folder / name, name, per_class=2)) for name in names},
    }


def differs_in(*arguments: Any) -> list[str]:
    recipe = describe_recipe(*arguments)
    assert recipe is not None
    return recipe["differs_in"]


# ---- The figures ----


def rows_like(recipe: Any) -> list[dict[str, str]]:
    """The records' rows of the recipe's data, model and method, best first."""
    dataset, _, kind = recipe.name.partition("_")
    model = "upanets" if "UPANets" in recipe.recorded.model else recipe.recorded.model
    wanted = (dataset, model, METHODS[kind])
    rows = [row for row in ROWS if (row["dataset"], row["model"], row["method"]) == wanted]
    return sorted(rows, key=lambda row: -float(row["best_accuracy"]))


@pytest.mark.parametrize("name", RECORDED)
def test_figures_and_schedules_are_the_best_rows(name: str) -> None:
    recipe = RECIPES[name]
    recorded, settings = recipe.recorded, recipe.settings
    assert recorded is not None
    rows = rows_like(recipe)
    if settings["opt"] == "pugd":  # of the length of the others, which are compared with it
        rows = [row for row in rows if row["epochs"] == "400"]
    best = rows[0]
    assert (recorded.best, recorded.final) == (float(best["best_accuracy"]), float(best["final_accuracy"]))
    assert recorded.epochs == settings["num_train_epochs"] == int(best["epochs"])
    for part in ("radius", "scale"):
        bounds = [float(best[f"{part}_{bound}"] or 0) for bound in ("beta_min", "beta_max")]
        expected = ["constant", 0, 1] if settings["opt"] == "pugd" else [best[part], *bounds]
        values = [settings.get(part, "constant"), settings.get(f"{part}_beta_min", 0)]
        assert [*values, settings.get(f"{part}_beta_max", 1)] == expected
    if recorded.baseline is not None:
        same = [row for row in ROWS if row["method"] == "pugd" and row["epochs"] == best["epochs"]]
        (pugd,) = [row for row in same if (row["dataset"], row["model"]) == (best["dataset"], best["model"])]
        assert recorded.baseline == float(pugd["best_accuracy"])


def test_every_best_row_has_a_recipe() -> None:
    kinds = {(row["dataset"], row["model"], row["method"]) for row in ROWS if row["method"] != "pugd"}
    assert kinds == {tuple(rows_like(RECIPES[name])[0].values())[:3] for name in RECORDED if "pugd" not in name}
    assert len(RECORDED) == len(kinds) + 2


def test_the_records_switch_settings() -> None:
    gap, variance = RECIPES["cifar10_timing_gap"], RECIPES["cifar10_timing_variance"]
    assert rows_like(gap)[0]["note"].startswith("base_epochs 10 mu 2 every 3")
    assert [gap.settings[f"switch_{name}"] for name in ("base_epochs", "mu", "every")] == [10, 2, 3]
    assert {row["note"] for row in rows_like(variance)[:2]} == {
        f"init {epochs} epochs gamma 0.2 k 10 switched at epoch 11" for epochs in (5, 10)
    }
    updates = 10 * 45_000 // 500
    assert [variance.settings[f"switch_{name}"] for name in ("window", "init_steps", "gamma")] == [
        updates,
        updates,
        0.2,
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_whole(name: str) -> None:
    recipe = RECIPES[name]
    own = {f.name for cls in (ModelArguments, DataArguments) for f in fields(cls)} | {"eval_steps", "save_steps"}
    own |= {*RTSTrainingArguments.__annotations__, *CommandArguments.__annotations__}
    assert recipe.name == name
    assert set(recipe.settings) <= own - {"recipe", "seed", "output_dir"}
    if name != "paper":  # which is the method alone
        assert {"dataset", "model", "opt", "num_train_epochs", "learning_rate"} <= set(recipe.settings)
        assert recipe.recorded or recipe.measured
    # the card cuts longer notes off
    assert all(len(caveat) <= 200 and caveat.endswith(".") for caveat in recipe.caveats)
    if recipe.recorded is not None and "UPANets" in recipe.recorded.model:
        assert "not directly comparable" in recipe.caveats[0]
    switch = recipe.settings.get("switch")
    if switch is not None:
        assert {f"switch_{setting}" for setting in SWITCHES[switch]().settings()} <= set(recipe.settings)


def test_the_papers_recipe_is_the_papers_method() -> None:
    training = parse_arguments(["--recipe", "paper", "--output_dir", "out"])[2]
    made: Any = create_optimizer_v2([torch.nn.Parameter(torch.zeros(1))], **training.optimizer_arguments())
    by_hand = RTSPUGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, **PAPER)
    assert made.settings() == by_hand.settings()
    words = ["--recipe", "paper", "--dataset", "cifar10", "--max_steps", "9", "--output_dir", "out"]
    assert differs_in(*parse_arguments(words)) == []  # it says nothing of data and length
    assert differs_in(*parse_arguments([*words, "--perturb_every", "5"])) == ["perturb_every"]
    assert differs_in(*parse_arguments([*words, "--opt", "lookahead_rts_pugd"])) == ["opt"]  # around the same method
    told = {name: value for name, value in PAPER.items() if "switch" not in name}
    for name in RECORDED:
        if RECIPES[name].settings["opt"] == "rts_pugd":
            assert told.keys() <= RECIPES[name].settings.keys()  # none is left to a default of the command


def test_digits_is_the_default_run_whose_card_is_here() -> None:
    record = json.loads((ROOT / "model_cards" / "digits_rts_pugd" / "run.json").read_text(encoding="utf-8"))
    recipe = RECIPES["digits"]
    assert recipe.measured is not None
    assert recipe.measured.accuracy == round(record["metrics"]["test"]["accuracy"], 4)
    assert recipe.measured.seeds == (record["seed"],)
    optimizer, settings = record["optimizer"], recipe.settings
    for part in ("radius", "scale"):
        values = [settings[part], settings[f"{part}_beta_min"], settings[f"{part}_beta_max"]]
        assert values == list(optimizer[part].values())
    assert (settings["base"], settings["learning_rate"]) == (optimizer["base"], optimizer["learning_rate"])
    told = {name.removeprefix("switch_"): value for name, value in settings.items() if name.startswith("switch_")}
    assert (settings["switch"], {**told, "unit_from": float(told["unit_from"])}) == (
        optimizer["switch"]["kind"],
        optimizer["switch"]["settings"],
    )
    assert settings["num_train_epochs"] == record["epochs"]


def of_a_run(arguments: Any) -> tuple[Any, ...]:
    """What decides a run, but for its length, which a recipe says in epochs and a comparison in updates."""
    model, data, training = arguments
    said_by_the_optimizer = {*TWO_PASS_FIELDS} | {"base", "max_steps", "num_train_epochs", "draw_figures", "recipe"}
    told = {name: value for name, value in settings_of(training).items() if name not in said_by_the_optimizer}
    optimizer: Any = create_optimizer_v2([torch.nn.Parameter(torch.zeros(1))], **training.optimizer_arguments())
    group = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    return model, data, told, optimizer.settings(), group


@pytest.mark.parametrize("found", [each for each in read_evidence(EVIDENCE) if not each.benchmark.is_pretrained])
def test_what_the_evidence_measured_is_a_recipe(found: Evidence, tmp_path: Path) -> None:
    recipe = RECIPES[f"{found.benchmark.name}_{'short' if found.budget == found.benchmark.budgets[0] else 'long'}"]
    (row,) = [row for row in found.comparison["methods"] if row["method"] == "paper"]
    mean, _, low, _ = row["test_accuracy"]
    assert recipe.measured == Measured(round(mean, 4), seeds=tuple(range(row["seeds"])), interval=round(mean - low, 4))
    means = {each["method"]: each["test_accuracy"][0] for each in found.comparison["methods"]}
    means.pop("rts_pugd", None)  # the six are those that were measured when the paper's method was the default
    best = max(means, key=lambda name: (means[name], name == "paper"))
    known = {"paper": "; no method of six had more than this recipe's.", "sgd": ", the most of six methods."}
    told = known.get(best, f", and {best} {means[best]:.4f}, the most of six methods.")
    assert f"For as many gradients plain SGD had {means['sgd']:.4f}{told}" in recipe.caveats
    words = ["--recipe", "paper", *found.comparison["words"], "--learning_rate", str(row["learning_rate"])]
    words += ["--max_steps", str(row["updates"]), "--output_dir", str(tmp_path)]
    by_recipe = parse_arguments(["--recipe", recipe.name, "--output_dir", str(tmp_path)])
    made = parse_arguments(words)
    assert of_a_run(by_recipe) == of_a_run(made)
    batches = found.comparison["gradient_evaluations"] / found.budget
    assert math.ceil(by_recipe[2].num_train_epochs * batches) == row["updates"]


def test_the_readmes_table_is_that_of_the_recipes() -> None:
    readme = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if line.startswith("| `cifar10")]
    assert rows == [readme_row(RECIPES[name]) for name in RECORDED]


def readme_row(recipe: Any) -> str:
    recorded = recipe.recorded
    words = recipe.in_words().removesuffix(", perturbed from the first update")
    baseline = "–" if recorded.baseline is None else f"{recorded.baseline:.4f}"
    cells = [f"`{recipe.name}`", words, recorded.epochs, f"{recorded.best:.4f}", f"{recorded.final:.4f}", baseline]
    return f"| {' | '.join(map(str, cells))} |"


# ---- By name ----


def test_the_command_line_goes_before_a_file_and_that_before_the_recipe(tmp_path: Path) -> None:
    words = ["--recipe", "cifar10_radius", "--output_dir", "out"]
    model, data, training = parse_arguments(words)
    assert (model.model, data.dataset, training.radius, training.switch_at) == (
        *("resnet18", "cifar10", "inverse_cosine_heating", 0),
    )
    assert (training.per_device_train_batch_size, training.num_train_epochs, training.recipe) == (
        *(500, 400, "cifar10_radius"),
    )
    assert differs_in(model, data, training) == []
    path = tmp_path / "settings.yaml"
    path.write_text("recipe: cifar100_scale\nnum_train_epochs: 30\nlearning_rate: 0.2\n")
    model, data, training = parse_arguments([str(path), "--learning_rate=0.3", "--seed", "1", "--output_dir", "out"])
    assert (data.dataset, training.num_train_epochs, training.learning_rate) == ("cifar100", 30, 0.3)
    assert differs_in(model, data, training) == ["learning_rate", "num_train_epochs", "seed"]
    training = parse_arguments([str(path), *words])[2]
    assert (training.recipe, training.radius, training.learning_rate) == (
        "cifar10_radius",
        "inverse_cosine_heating",
        0.2,
    )


def test_a_value_at_the_commands_default_is_given_too() -> None:
    words = [
        "--recipe",
        "cifar10_vit_base",
        "--weight_decay",
        "0.0005",
        "--num_train_epochs",
        "30",
        "--pretrained=False",
    ]
    model, data, training = parse_arguments([*words, "--output_dir", "out"])
    assert (model.pretrained, training.num_train_epochs) == (False, 30)
    assert differs_in(model, data, training) == ["num_train_epochs", "pretrained"]


@pytest.mark.parametrize("words", [["--opt", "adamw"], ["--base", "adamw"], ["--opt", "sam", "--base", "adamw"]])
def test_a_learning_rate_of_sgd_is_not_adams(words: list[str]) -> None:
    assert parse_arguments(["--recipe", "cifar10_radius", *words, "--output_dir", "out"])[2].learning_rate == 1e-3
    given = parse_arguments(["--recipe", "cifar10_radius", *words, "--learning_rate", "0.1", "--output_dir", "out"])[2]
    assert given.learning_rate == 0.1


@pytest.mark.parametrize("opt", ["momentum", "sam", "rts_pugd"])
def test_a_baseline_shares_all_but_the_optimizers_own_settings(opt: str) -> None:
    training = parse_arguments(["--recipe", "cifar10_pugd", "--opt", opt, "--output_dir", "out"])[2]
    base = None if opt == "momentum" else "momentum"
    assert (training.opt, training.base, training.learning_rate) == (opt, base, 0.1)
    assert training.per_device_train_batch_size == 500


@pytest.mark.parametrize(
    "words",
    [
        ["cifar10_radius"],
        ["cifar100_vit_base"],
        ["cifar100_vit_base", "--pretrained", "False", "--num_train_epochs", "30", "--seed", "7"],
        ["cifar10_radius_scale", "--opt", "sgd"],
        ["cifar10_timing_variance", "--switch", "fixed", "--switch_at", "0.1"],
        ["cifar10_deit_base", "--model", "deit_tiny_patch16_224", "--max_train_samples", "9"],
        ["digits"],
    ],
)
def test_the_recorded_command_repeats_the_run(words: list[str]) -> None:
    first = parse_arguments(["--recipe", *words, "--output_dir", "out"])
    again = shlex.split(command_line(*first))
    second = parse_arguments([*again[5:], "--output_dir", "out"])
    assert first[:2] == second[:2]
    assert describe_recipe(*first) == describe_recipe(*second)
    assert settings_of(first[2]) == settings_of(second[2])


def test_the_recorded_command_names_no_recipe_that_would_fill_in_what_the_run_left_out(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("recipe: cifar10_radius\nradius_beta_min: null\nradius: constant\n")
    first = parse_arguments([str(path), "--output_dir", "out"])
    again = shlex.split(command_line(*first))
    assert "--recipe" not in again
    second = parse_arguments([*again[5:], "--output_dir", "out"])
    assert {**settings_of(first[2]), "recipe": None} == settings_of(second[2])


def test_recipe_arguments_are_those_of_the_command() -> None:
    words = ["--recipe", "cifar100_deit_base", "--max_steps", "5", "--max_train_samples", "7", "--output_dir", "out"]
    parsed = parse_arguments(words)
    made = recipe_arguments("cifar100_deit_base", max_steps=5, max_train_samples=7, output_dir="out")
    assert made[:2] == parsed[:2]
    assert settings_of(made[2]) == settings_of(parsed[2])
    assert differs_in(*made) == ["max_steps", "max_train_samples"]


def test_unknown_names(tmp_path: Path) -> None:
    message = (
        r"recipe='cifar10_radious' is unknown; did you mean cifar10_radius.*\? There are paper, .*cifar100_deit_base"
    )
    path = tmp_path / "settings.yaml"
    path.write_text("recipe: cifar10_radious")
    for words in (["--recipe", "cifar10_radious"], [str(path)]):
        with pytest.raises(ValueError, match=message):
            parse_arguments(words)
    with pytest.raises(ValueError, match=message):
        recipe_arguments("cifar10_radious")
    with pytest.raises(ValueError, match=message):
        train(ModelArguments(), DataArguments(), CommandArguments(recipe="cifar10_radious", output_dir="out"))
    with pytest.raises(ValueError, match=r"recipe='zzz' is unknown\. There are paper, digits"):
        find_recipe("zzz")
    with pytest.raises(ValueError, match="epochs: no argument of the training command"):
        recipe_arguments("digits", epochs=3)


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaves:
        parse_arguments(["--list_recipes"])
    assert leaves.value.code == 0
    text = capsys.readouterr().out
    assert re.search(r"^cifar10_radius +cifar10 +resnet18 +400 +0\.9419 / 0\.9413 +–$", text, re.MULTILINE)
    assert "inverse_cosine_heating (β_min 0.01, β_max 2)" in " ".join(text.split())
    for recipe in RECIPES.values():
        assert re.search(rf"^{recipe.name} ", text, re.MULTILINE)
        assert all(caveat in " ".join(text.split()) for caveat in recipe.caveats)
    assert max(map(len, recipes_table(80).splitlines())) <= 100


# ---- Runs ----

DRY = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--max_eval_samples", "4", "--use_cpu"]
DRY += ["--validation_fraction", "0.5"]  # of two images a class
WITHOUT_FILES = ["--save_strategy", "no", "--load_best_model_at_end", "False", "--disable_tqdm", "True"]


def backbone_of(name: str) -> tuple[Any, ...]:
    settings = RECIPES[name].settings
    return tuple(str(settings.get(key)) for key in ("dataset", "model", "model_args", "pretrained"))


# With the backbone that a recipe names, the first of those that share it; the others differ in the optimizer alone.
FIRST = {name for name in RECIPES if name == next(each for each in RECIPES if backbone_of(each) == backbone_of(name))}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_with_its_real_backbone(name: str, data_folders: dict[str, str], tmp_path: Path) -> None:
    data_folder = data_folders[RECIPES[name].settings.get("dataset", "digits")]
    words = ["--recipe", name, "--dataset", data_folder, "--pretrained", "False", *DRY, *WITHOUT_FILES]
    words += [] if name in FIRST else ["--model", "test_resnet", "--model_args", "{}"]
    model_args, data_args, args = parse_arguments([*words, "--output_dir", str(tmp_path), "--logging_steps", "1"])
    data = load_run_data(model_args, replace(data_args, cache_dir=data_folders["cache"]))
    changes = dict(model_args.model_args or {})
    if "vit" in str(model_args.model) or "deit" in str(model_args.model):
        changes["depth"] = 2  # of 12 blocks that are alike
    model = build_model(
        str(model_args.model),
        label_names=data.label_names,
        image_size=data.image_size,
        mean=data.mean,
        std=data.std,
        small_image_stem=False if RECIPES[name].settings.get("pretrained") and "resnet" in name else None,
        model_args=changes or None,
    )
    if "patch_size" in changes:
        assert model.timm_model.patch_embed.grid_size == (4, 4)
    trainer = create_trainer(model, data, args)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(This run will never perturb|The switch .* never fired)")
        trainer.train()
    assert trainer.state.global_step == 2
    perturbed = 2 if args.opt == "pugd" or args.switch_at == 0 else 1 if args.switch_at == 0.5 else 0
    assert trainer.gradient_evaluations == 2 + perturbed
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_run_tells_measured_beside_recorded(
    data_folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = ["--recipe", "cifar10_radius", "--dataset", data_folders["cifar10"], "--model", "test_resnet", *DRY]
    record = train(*parse_arguments([*words, "--output_dir", str(folder), "--cache_dir", data_folders["cache"]]))
    accuracy = f"{record['metrics']['test']['accuracy']:.4f}"
    names = ["dataset", "max_eval_samples", "max_steps", "model", "per_device_train_batch_size", "validation_fraction"]
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["recipe"] == {
        "name": "cifar10_radius",
        "recorded": {
            "model": "UPANets (16 filters, 1 block)",
            "epochs": 400,
            "best": 0.9419,
            "final": 0.9413,
            "baseline": 0.9353,
        },
        "measured": None,
        "caveats": [*RECIPES["cifar10_radius"].caveats],
        "differs_in": names,
    }
    shown = capsys.readouterr().out
    assert f"Recipe                cifar10_radius, but for {', '.join(names)}" in shown
    assert "Recorded              0.9419 at best, 0.9413 at the end: the authors' test accuracy of UPANets" in shown
    assert f"Measured here         {accuracy}: test accuracy of test_resnet_small" in shown
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert (
        "Recipe: **cifar10_radius**, for which the method's authors recorded a test accuracy of 0.9419 at best" in card
    )
    assert (
        "0.9413 at the end (UPANets (16 filters, 1 block), 400 epochs; 0.9353 at best with plain PUGD); this run: "
        in card
    )
    assert f"this run: {accuracy}. The run differs from the recipe in {', '.join(names)}." in card
    assert "- UPANets is not in timm" in card
    assert "…" not in card[card.index("Recipe:") : card.index("## Data")]


def test_a_run_without_a_recipe_tells_none(tmp_path: Path) -> None:
    assert describe_recipe(ModelArguments(), DataArguments(), CommandArguments(output_dir=str(tmp_path))) is None
