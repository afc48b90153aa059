"""The README's examples run as they stand, its figures are those of the records, and no page's link leads nowhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from benchmark.variants import Variant

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
    optimizer = rts_hf.RTSPUGD(model.parameters(), lr=0.1, switch=None, perturb_every=1, total_steps=5)
    names = {"model": model, "x": x, "y": y, "optimizer": optimizer, "windows": [[(x, y), (x, y)]] * 3}
    return {**names, "rts_hf": rts_hf, "loader": [(x, y)] * 3, "loss_fn": torch.nn.MSELoss(), "timm": timm}


@pytest.mark.parametrize(
    ("words", "evaluations"),
    [("attach_second_pass", 1), ("def closure", 1), ("for x, y in loader", 6), ("for window in windows", 6)],
)
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


def test_costs_are_those_of_the_records() -> None:
    cards = ROOT / "model_cards"
    (part,) = re.findall(r"(\| cost \|.*?)\n\n", README, re.DOTALL)
    costs = [line for line in part.splitlines() if line.startswith("| ")]
    kept = [json.loads((cards / "benchmark" / f"benchmark{gpu}.json").read_text()) for gpu in ("", "-gpu")]
    cpu, gpu = ({each["name"]: f"{round(each['value'], 2):g}" for each in record["figures"]} for record in kept)
    told = [line.strip("| ").split(" | ")[1:] for line in costs[2:]]
    names = ("update", "before_switch", "trainer", "memory", "synchronizations")
    assert [told[row] for row in (0, 1, 4, 5, 6)] == [[cpu[name], gpu[name]] for name in names]
    timed = kept[0]["updates"]
    default, fifth = (Variant("", every=every).seconds(timed) / timed["sgd"] for every in (1, 5))
    assert [row[0] for row in told[2:4]] == [f"{default:.2f}", f"{fifth:.2f}"]
    assert told[7][0] == f"2; {cpu['all_reduce']}"
