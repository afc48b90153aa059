"""What a comparison is told to compare, as words of a command line."""

import pytest

from rts_hf.comparing.method import option, parse_method, parse_recipe


def test_a_method_is_an_optimizer_with_its_options() -> None:
    method = parse_method("rts_pugd  --switch_at 0.9 --opt_args '{\"nesterov\": false}'")
    assert method.label == "rts_pugd --switch_at 0.9 --opt_args '{\"nesterov\": false}'"
    assert parse_method(method.label) == method
    assert method.words[:4] == ("--opt", "rts_pugd", "--switch_at", "0.9")
    assert method.folder == "rts_pugd_--switch_at_0.9_--opt_args_nesterov_false"
    assert (method.learning_rate, method.updates) == (None, None)


def test_a_recipe_is_one_too() -> None:
    assert parse_recipe("cifar10_pugd").words == ("--recipe", "cifar10_pugd")
    with pytest.raises(ValueError, match="recipe='cifar' is unknown"):
        parse_recipe("cifar")


@pytest.mark.parametrize("text", ["", "--opt sgd", "-1"])
def test_what_begins_with_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must begin with an optimizer's name"):
        parse_method(text)
    with pytest.raises(ValueError, match="must begin with a recipe's name"):
        parse_recipe(text)


@pytest.mark.parametrize(
    ("word", "name"),
    [("--max_steps", "max_steps"), ("--max-steps=3", "max_steps"), ("3", None), ("-3", None), ("--a=b-c", "a")],
)
def test_an_option_is_known_however_it_is_spelt(word: str, name: str | None) -> None:
    assert option(word) == name
