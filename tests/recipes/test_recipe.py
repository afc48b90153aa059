"""What a recipe fills in, what gives way to what is given, and what a run's record tells of it."""

import pytest

from rts_hf.recipes.recipe import Measured, Recipe, Recorded

RECIPE = Recipe(
    "mine",
    "for the tests",
    {
        "dataset": "cifar10",
        "model": "vit_base_patch16_224",
        "model_args": {"patch_size": 8},
        "pretrained": True,
        "opt": "rts_pugd",
        "base": "momentum",
        "radius": "cosine_annealing",
        "radius_beta_min": 0.5,
        "radius_beta_max": 2.0,
        "switch": "gradient_variance",
        "switch_window": 20,
        "learning_rate": 0.1,
    },
)


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        ({}, set()),
        ({"dataset": "mine"}, {"dataset"}),
        ({"opt": "rts_pugd", "seed": 3}, {"opt"}),
        (
            {"opt": "sgd"},
            {"opt", "base", "radius", "radius_beta_min", "radius_beta_max", "switch", "switch_window"},
        ),
        ({"switch": "gradient_variance"}, {"switch"}),
        ({"switch": "fixed"}, {"switch", "switch_window"}),
        ({"model": "resnet18"}, {"model", "model_args"}),
        ({"checkpoint": "run"}, {"pretrained"}),
        ({"checkpoint": None}, set()),
    ],
)
def test_what_is_given_goes_before_the_recipe(given: dict, left_out: set) -> None:
    filled_in = RECIPE.defaults(given)
    assert set(filled_in) == set(RECIPE.settings) - left_out
    assert all(RECIPE.settings[name] == value for name, value in filled_in.items())


def test_a_run_cannot_change_the_recipe() -> None:
    RECIPE.defaults({})["model_args"]["patch_size"] = 4
    assert RECIPE.settings["model_args"] == {"patch_size": 8}


def test_differences_are_those_from_the_recipe_and_beyond_it() -> None:
    present = {**RECIPE.settings, "seed": 42, "recipe": "mine"}
    assert RECIPE.differences(present, {*RECIPE.settings, "recipe"}) == []
    assert RECIPE.differences({**present, "radius": None}, ["max_steps", "recipe"]) == ["max_steps", "radius"]
    assert RECIPE.differences({}, []) == sorted(RECIPE.settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"opt": "pugd"}, "plain PUGD, perturbed from the first update"),
        (RECIPE.settings, "radius cosine_annealing (β_min 0.5, β_max 2), switch gradient_variance (window 20)"),
        (
            {"opt": "rts_pugd", "scale": "sine_heating", "scale_beta_min": 0.0, "scale_beta_max": 1.5,
             "switch": "fixed", "switch_at": "0"},
            "scale sine_heating (β_min 0, β_max 1.5), perturbed from the first update",
        ),
    ],
)  # fmt: skip
def test_in_words(settings: dict, words: str) -> None:
    assert Recipe("mine", "", settings).in_words() == words


def test_facts_are_what_json_holds() -> None:
    recorded, measured = Recorded("a model", 9, best=0.5, final=0.25), Measured(0.75, seeds=(1, 2), interval=0.01)
    assert Recipe("mine", "", {}, recorded, measured, ("A caveat.",)).facts(["seed"]) == {
        "name": "mine",
        "recorded": {"model": "a model", "epochs": 9, "best": 0.5, "final": 0.25, "baseline": None},
        "measured": {"accuracy": 0.75, "seeds": [1, 2], "interval": 0.01},
        "caveats": ["A caveat."],
        "differs_in": ["seed"],
    }
    assert Recipe("mine", "", {}).facts([])["recorded"] is None
