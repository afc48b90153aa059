"""run.json: plain JSON, no secrets, the command that repeats the run."""

import math
import shlex
from pathlib import Path

from rts_hf.runs.command_line import parse_arguments
from rts_hf.runs.record import _plain, command_line
from rts_hf.training.arguments import settings_of


def test_the_command_repeats_the_run(tmp_path: Path) -> None:
    words = [
        "--model", "resnet18", "--model_args", '{"drop_rate": 0.1}', "--dataset", "my data", "--radius", "constant",
        "--switch", "fixed", "--switch_at", "0.5", "--no_same_dropout", "--report_to", "tensorboard",
        "--hub_token", "hf_secret", "--max_eval_samples", "9", "--use_cpu", "--output_dir", str(tmp_path / "private"),
    ]  # fmt: skip
    first = parse_arguments(words)
    command = command_line(*first)
    assert "hf_secret" not in command
    assert str(tmp_path) not in command
    again = shlex.split(command)
    assert again[:5] == ["accelerate", "launch", "-m", "rts_hf", "train"]
    second = parse_arguments([*again[5:], "--output_dir", str(tmp_path / "other")])
    assert first[0] == second[0]
    assert first[1] == second[1]
    assert settings_of(first[2]) == settings_of(second[2])


def test_values_that_json_cannot_hold() -> None:
    assert _plain({1: (math.nan, math.inf, 1.5), "path": Path("a/b")}) == {"1": [None, None, 1.5], "path": "a/b"}
