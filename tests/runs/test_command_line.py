"""The command line and the settings file."""

import json
from pathlib import Path

import pytest
import yaml

from rts_hf.runs.command_line import parse_arguments

SETTINGS = {"opt": "sam", "dataset": "cifar10", "radius_beta_max": 0.1, "switch": "fixed", "switch_at": 0.5}


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_a_file_gives_defaults_and_the_command_line_goes_before_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"settings{suffix}"
    path.write_text(json.dumps(SETTINGS) if suffix == ".json" else yaml.safe_dump(SETTINGS))
    _, data, training = parse_arguments([str(path), "--output_dir", "out"])
    assert (training.opt, data.dataset, training.radius_beta_max, training.switch_at) == ("sam", "cifar10", 0.1, 0.5)
    _, data, training = parse_arguments([str(path), "--output_dir", "out", "--opt", "asam", "--dataset", "digits"])
    assert (training.opt, data.dataset, training.radius_beta_max) == ("asam", "digits", 0.1)


def test_the_command_line() -> None:
    model, data, training = parse_arguments(
        ["--model", "resnet18", "--model_args", '{"drop_rate": 0.1}', "--image_size", "32", "--switch", "fixed",
         "--switch_at", "0.5", "--output_dir", "out", "--no_same_dropout", "--bf16", "--use_cpu", "--report_to",
         "tensorboard"]
    )  # fmt: skip
    assert (model.model, model.model_args, data.image_size) == ("resnet18", {"drop_rate": 0.1}, 32)
    assert (training.switch_at, training.same_dropout, training.bf16) == (0.5, False, True)
    assert training.report_to == ["tensorboard"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optt", "sgd"], "unknown argument --optt; did you mean --opt"),
        (["nowhere.yaml"], "settings file 'nowhere.yaml' cannot be read"),
        (["--model_args", "nonsense"], "model_args='nonsense' is not JSON"),
        (["stray"], "unknown argument stray. --help lists"),
        (["--lr", "0.1"], "unknown argument --lr; did you mean --learning_rate"),
        (["--batch_size=3"], "unknown argument --batch_size=3; did you mean --per_device_train_batch_size"),
        (["--optimizer", "sgd"], r"unknown argument --optimizer; did you mean --opt\?"),
    ],
)
def test_bad_words(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_arguments([*words, "--output_dir", "out"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("radus: constant", "unknown setting in .*radus; did you mean --radius"),
        ("- a", "names and values"),
        ("num_train_epochs: [3]", r"setting num_train_epochs=\[3\] in .* must be a single value, not a list"),
        ("seed: 1.5", "setting seed=1.5 in .* cannot be read"),
        ("learning_rate: true", "setting learning_rate=True in .* cannot be read: could not convert"),
        ("skip_bad_images: 5", "setting skip_bad_images=5 in .* cannot be read"),
        ("dataset: {a: b}", "setting dataset={'a': 'b'} in .* must be a single value"),
        ("radius: square", "setting radius='square' in .* must be one of constant"),
        ("opt: 3", "opt='3' is not an optimizer timm knows"),
        ("trust_remote_code: true", "unknown setting in .*trust_remote_code"),
        (": :", "cannot be read"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(path)])


def test_help_shows_what_people_use_and_help_all_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {}
    for option in ("--help", "--help_all"):
        with pytest.raises(SystemExit):
            parse_arguments([option], description="What it does.")
        texts[option] = capsys.readouterr().out
    shown = [line.split()[0] for line in texts["--help"].splitlines() if line.startswith("  --")]
    assert {"--opt", "--dataset", "--model", "--num_train_epochs", "--seed", "--recipe"} <= set(shown)
    assert len(set(shown) - {"--help_all", "--list_recipes"}) == 20
    for argument in ("--radius ", "--switch_gamma ", "--fsdp "):
        assert argument not in texts["--help"]
        assert argument in texts["--help_all"]


def test_a_file_may_say_all_kinds_of_values(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(
        "output_dir: 5\nsame_dropout: false\nbf16: true\nuse_cpu: true\nlearning_rate: 1\n"
        "model_args: {drop_rate: 0.1}\nreport_to: [tensorboard]\nmax_train_samples: 12\n"
        "metric_for_best_model: loss\nbase: null\n"
    )
    model, data, training = parse_arguments([str(path)])
    assert (model.model_args, data.max_train_samples) == ({"drop_rate": 0.1}, 12)
    assert (training.output_dir, training.same_dropout, training.bf16, training.base) == ("5", False, True, None)
    assert (training.learning_rate, type(training.learning_rate)) == (1.0, float)
    assert (training.report_to, training.metric_for_best_model) == (["tensorboard"], "loss")
