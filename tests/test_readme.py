"""The README's Python examples run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rts_hf

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("model_cards/*/README.md")]
MAP = (ROOT / "rts_hf" / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README + MAP, re.DOTALL)


@pytest.mark.parametrize("example", [code for code in EXAMPLES if "loss_fn" not in code])
def test_example_runs(example: str, tmp_path: Path) -> None:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", example]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    if "accelerator" in example:
        assert result.stdout.split() == ["pugd", "63"]  # 21 plain updates and 21 perturbed ones


def names_of_a_small_loop() -> dict[str, Any]:
    model = torch.nn.Linear(2, 1)
    x, y = torch.ones(4, 2), torch.zeros(4, 1)
    optimizer = rts_hf.RTSPUGD(model.parameters(), lr=0.1, switch=None, total_steps=5)
    names = {"model": model, "x": x, "y": y, "optimizer": optimizer, "windows": [[(x, y), (x, y)]] * 3}
    return {**names, "loss_fn": torch.nn.functional.mse_loss}


@pytest.mark.parametrize(("words", "evaluations"), [("def closure", 2), ("for window in windows", 6)])
def test_loop_example(words: str, evaluations: int) -> None:
    names = names_of_a_small_loop()
    (example,) = [code for code in EXAMPLES if words in code]
    exec(example, names)
    assert names["optimizer"].stats()["gradient_evaluations"] == evaluations


def test_ci_ends_with_the_readmes_test_command() -> None:
    commands = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)
    ci = (ROOT / ".ci" / "run").read_text()
    assert ci.rstrip().splitlines()[-1] == commands[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_gains_are_those_of_the_evidence() -> None:
    evidence = (ROOT / "model_cards" / "evidence" / "README.md").read_text(encoding="utf-8").replace("**", "")
    rows = re.findall(r"^\| (`\w+`) \| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", README, re.MULTILINE)
    assert len(rows) == 8
    for data, passes, sgd, ours, difference in rows:
        found = [line for line in evidence.splitlines() if line.startswith(f"| {data} | {passes} | chosen |")]
        assert [f"| {sgd} |" in found[0], found[0].endswith(f"| {ours} |")] == [True, True]
        assert f"| chosen | {difference} |" in found[1]
