"""What a card tells of the optimizer: its schedules, its switch, and what the log says of its updates."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cards_for_tests import change, metadata
from run_folder_for_tests import edit_json, write_run_folder

from rts_hf.optim.schedules import AlphaSchedule
from rts_hf.reports.card import render_card


def test_card_says_what_the_log_says(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")

    def edit(state: dict[str, Any]) -> None:
        for entry in state["log_history"]:
            if "sharpness" in entry:
                entry |= {"sharpness": 0.5 if entry["step"] == 400 else 0.22, "alpha_r": 0.654}
                entry["gradient_evaluations"] -= 3 if entry["step"] < 400 else 0  # two second passes, not five, at 125
            if "eval_loss" in entry:
                entry |= {"train_loss": 0.987, "eval_loss": 0.456, "eval_accuracy": 0.789}

    edit_json(folder / "trainer_state.json", edit)
    card = render_card(folder)
    sharpness = next(row for row in card.splitlines() if row.startswith("Sharpness"))
    assert sharpness == (
        "Sharpness L(w+ε) − L(w): mean 0.228 over 280 perturbed updates (56 log entries, each the mean over the "
        "perturbed updates since the log entry before), 0.5 in the last entry."
    )
    assert "| 0.654 (update 125) to 0.654 (update 400) |" in card
    assert "| 7 | 140 | 0.9870 | 0.4560 | 0.7890 |" in card


def test_log_rows_hold_the_mean_since_the_row_before_and_one_evaluation_an_update(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    log = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry and 100 < entry["step"] <= 120]
    assert f"| 6 | 120 | {sum(losses) / len(losses):.4f} |" in render_card(folder)
    before = render_card(folder)
    final = {"step": 400, "epoch": 20.0, "eval_loss": 9.0, "eval_accuracy": 0.1}
    edit_json(folder / "trainer_state.json", lambda state: state["log_history"].append(final))
    assert render_card(folder) == before


def test_sharpness_that_is_not_finite_is_left_out_and_counted(tmp_path: Path) -> None:
    card = render_card(write_run_folder(tmp_path / "run", "diverged"))
    assert "over 140 perturbed updates (56 log entries, each" in card
    assert "before; 28 of them not finite, and left out), not finite in the last entry." in card


@pytest.mark.parametrize(("kind", "first", "last"), [("every_fourth", 105, 385), ("rts_pugd", 125, 400)])
@pytest.mark.parametrize("beta_min", [0.1, 0.0])
def test_logged_schedule_values_are_those_of_perturbed_updates(
    tmp_path: Path, kind: str, first: int, last: int, beta_min: float
) -> None:
    radius = {"strategy": "cosine_annealing", "beta_min": beta_min, "beta_max": 1.0}
    card = render_card(write_run_folder(tmp_path / "run", kind, radius=radius))
    row = next(line for line in card.splitlines() if line.startswith("| radius α_r"))
    value = "0" if beta_min == 0 and last == 400 else r"\S+"
    assert re.search(rf"\| \S+ \(update {first}\) to {value} \(update {last}\) \|$", row)


def test_long_log_is_thinned_to_its_ends_and_rows_between(tmp_path: Path) -> None:
    card = render_card(write_run_folder(tmp_path / "run", epochs=90))
    assert "evenly chosen evaluations" in card
    rows = re.findall(r"^\| (\d+) \| [\d,]+ \| \d\.\d{4} \| \d\.\d{4} \|", card, re.MULTILINE)
    assert (len(rows), rows[0], rows[-1]) == (25, "1", "90")


def test_schedule_values_at_the_landmarks(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "gap_switch")
    schedule = AlphaSchedule("cosine_annealing", beta_min=0.1, beta_max=1.0)
    row = next(line for line in render_card(folder).splitlines() if line.startswith("| radius α_r"))
    start, switch, end = row.split(" | ")[5:8]
    assert (start, switch, end) == ("1", f"{schedule(180 / 399):.4g}", f"{schedule(1.0):.4g}")


def test_schedule_value_at_the_end_is_that_of_the_last_update(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "gap_switch")
    change(folder, "updates", 200)
    row = next(line for line in render_card(folder).splitlines() if line.startswith("| radius α_r"))
    schedule = AlphaSchedule("cosine_annealing", beta_min=0.1, beta_max=1.0)
    assert row.split(" | ")[7] == f"{schedule(199 / 399):.4g}"


def test_one_perturbed_update_in_the_log_is_told_once(tmp_path: Path) -> None:
    card = render_card(write_run_folder(tmp_path / "run", "one_epoch", switch_step=15))
    assert re.search(r"^\| radius α_r .* \| \S+ \(update 20\) \|$", card, re.MULTILINE)


def test_gap_switch_tells_gap_and_threshold(tmp_path: Path) -> None:
    card = render_card(write_run_folder(tmp_path / "run", "gap_switch"))
    assert "Δ = 0.047; it fires above μ·Δ_base = 2 · 0.02 = 0.04." in card


def test_run_that_never_switched_is_told_plainly(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "never_switched")
    change(folder, "optimizer.base", "adamw")
    card = render_card(folder)
    assert "**No update of this run was perturbed.**" in card
    assert "so the model is what\n> adamw alone made of it." in card
    assert "**The switch never fired**: every update (400) was a plain update of adamw." in card
    assert "σ² = 0.09; it fires below γ·σ²_init = 0.2 · 0.0625 = 0.0125." in card
    assert "this run says nothing about rts_pugd" in card
    assert "fired after update" not in card


def test_unit_steps_that_were_not_perturbed_are_told(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "never_switched")
    change(folder, "optimizer.switch.kind", "staged")
    change(folder, "optimizer.switch.unit_step", 200)
    change(folder, "optimizer.switch.settings", {"base_epochs": 3, "every": 3, "mu": 2.0})
    state = {"base_sum": 0.06, "base_count": 3, "gap": 0.03, "grown": False, "epochs_seen": 7}
    change(folder, "optimizer.switch.state", state)
    card = render_card(folder)
    assert "perturbed.** After update 200 sgd took unit steps;\n> the generalization gap did not grow." in card
    assert "was a plain update of sgd, after update 200 with g / min(‖g‖, 1) in place of g." in card
    assert "Δ = 0.03; it has grown above μ·Δ_base = 2 · 0.02 = 0.04." in card
    folder = write_run_folder(tmp_path / "other")  # which perturbs after update 120
    change(folder, "optimizer.switch.kind", "staged")
    change(folder, "optimizer.switch.unit_step", 40)
    card = render_card(folder)
    assert (
        "the updates before it were plain updates of sgd, after update 40 with g / min(‖g‖, 1) in place of g." in card
    )


@pytest.mark.parametrize(("best", "told"), [({"step": 100}, 100), ({"step": 120}, 120), ({"step": 121}, None)])
def test_weights_from_before_the_switch_are_told_plainly(
    tmp_path: Path, best: dict[str, Any], told: int | None
) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "best", {"metric": "accuracy", "value": 0.9, **best})
    card = render_card(folder)
    plainly = (
        f"> **No perturbed update took part in these weights.** They are those of update {told}, and the switch to"
    )
    assert (plainly in card) is (told is not None)
    assert ("> PUGD fired after update 120, so the model is what sgd alone made of it." in card) is (told is not None)
    assert ("so their results say nothing about rts_pugd" in card) is (told is not None)


def test_a_switch_at_the_last_update_perturbed_nothing(tmp_path: Path) -> None:
    card = render_card(write_run_folder(tmp_path / "run", "kept_last", switch_step=400))
    assert "They are those of update 400, and the switch to\n> PUGD fired after update 400," in card
    assert "No perturbed update" not in render_card(write_run_folder(tmp_path / "pugd", "pugd"))


def test_perturbed_from_the_start_has_no_plain_phase(tmp_path: Path) -> None:
    card = render_card(write_run_folder(tmp_path / "run", "pugd"))
    assert "Perturbed from the first update on" in card
    assert "fired after update" not in card


def test_plain_optimizer_claims_nothing_of_perturbation(tmp_path: Path) -> None:
    card = render_card(write_run_folder(tmp_path / "run", "sgd"))
    assert "sgd is a plain optimizer: one gradient an update, no perturbation." in card
    assert not {"rts-pugd", "sharpness-aware-minimization"} & set(metadata(card)["tags"])
    assert not re.search("α_r|witch|times as many", card)


@pytest.mark.parametrize(
    ("kind", "tag"), [("rts_pugd", "rts-pugd"), ("pugd", "pugd"), ("sam", "sam"), ("never_switched", "rts-pugd")]
)
def test_two_pass_runs_are_tagged(tmp_path: Path, kind: str, tag: str) -> None:
    tags = metadata(render_card(write_run_folder(tmp_path / "run", kind)))["tags"]
    assert {tag, "timm", "transformers", "image-classification", "sharpness-aware-minimization"} == set(tags)
