"""Cheaper variants: what they cost is reckoned from timed updates, and their accuracy comes from kept results."""

from pathlib import Path

import pytest
import timm.optim
import torch
from benchmark.variants import BUDGET, VARIANTS, Variant, command, keep, table, time_updates

from rts_hf.reports.comparison import COLUMNS, to_csv
from rts_hf.runs.command_line import parse_arguments

TIMED = {"sgd": 1.0, "unit step": 1.1, "perturbed": 2.0, "perturbed, 0.5": 1.5, "perturbed, 0.25": 1.25}


def rows() -> list[dict]:
    found = []
    for place, variant in enumerate(VARIANTS.values()):
        for seed in range(2):
            accuracy = 0.9 + 0.01 * place + seed / 100
            found.append(
                {**dict.fromkeys(COLUMNS, 1), "method": variant.words, "seed": seed, "test_accuracy": accuracy}
            )
    return found


@pytest.mark.parametrize(
    ("variant", "seconds", "gradients"),
    [
        (Variant("sgd", switch_at=1.0), 1.0, 1.0),
        (Variant("x"), 1.5, 1.5),
        (Variant("x", switch_at=0.9), 1.1, 1.1),
        (Variant("x", switch_at=0.0, every=5), (2.0 + 4 * 1.1) / 5, 1.2),
        (Variant("x", switch_at=0.0, fraction=0.25), 1.25, 1.25),
    ],
)
def test_what_a_variant_costs(variant: Variant, seconds: float, gradients: float) -> None:
    assert variant.seconds(TIMED) == pytest.approx(seconds)
    assert variant.gradients() == pytest.approx(gradients)


def test_the_table() -> None:
    lines = table(rows(), TIMED).splitlines()
    assert len(lines) == 2 + len(VARIANTS)
    assert lines[2] == "| SGD | 1.00 | 1.00 | 90.50 ± 0.71 | – |"
    assert lines[3].startswith("| `switch_at` 0.5: perturbs in the second half | 1.50 | 1.00 | 91.50 ± 0.71 | +1.00 (")


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.words)
def test_a_variants_words_say_what_is_reckoned_with(variant: Variant) -> None:
    args = parse_arguments(["--opt", *variant.words.split(), "--output_dir", "x"])[2]
    optimizer = timm.optim.create_optimizer_v2([torch.nn.Parameter(torch.zeros(1))], **args.optimizer_arguments())
    if variant.words == "sgd":
        assert variant.switch_at == 1.0
        return
    assert optimizer.switch.settings()["at"] == variant.switch_at
    assert optimizer.param_groups[0]["rts_perturb_every"] == variant.every
    assert args.perturb_fraction == variant.fraction


def test_the_command_and_what_is_missing() -> None:
    assert command("x")[1 : 1 + len(VARIANTS)] == [variant.words for variant in VARIANTS.values()]
    assert str(BUDGET) in command("x")
    with pytest.raises(ValueError, match=r"run scripts/benchmark --rerun_variants"):
        table([row for row in rows() if "0.25" not in row["method"]], TIMED)


def test_an_unfinished_comparison_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not finished"):
        keep(tmp_path, tmp_path / "kept")
    (tmp_path / "comparison.json").write_text("{}", encoding="utf-8")
    (tmp_path / "results.csv").write_text(to_csv(rows()), encoding="utf-8")
    keep(tmp_path, tmp_path / "kept")
    assert (tmp_path / "kept" / "variants.csv").read_text(encoding="utf-8") == to_csv(rows())


def test_every_kind_of_update_is_timed() -> None:
    timed = time_updates(repeats=5, batch=16)
    assert set(timed) == set(TIMED)
    assert timed["perturbed"] > timed["sgd"]
