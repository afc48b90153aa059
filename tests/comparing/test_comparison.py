"""Which runs a comparison makes: within the budget, the same for the same request, and never over others' folders."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comparison_for_tests import PAPER, SMALL, planned
from run_folder_for_tests import edit_json, write_run_folder

from rts_hf.comparing.backends import Job, going_on
from rts_hf.comparing.comparison import Cell, Comparison, make_runs
from rts_hf.comparing.method import parse_method, parse_recipe, updates_within
from rts_hf.optim.switches import FixedSwitch
from rts_hf.recipes.recorded import find_recipe
from rts_hf.runs.command_line import parse_arguments

LISTENS = f"{PAPER} --switch gradient_variance"


def pretend(plan: Comparison, cell: Cell, evaluations: float | None = None, switched: int | None = None) -> None:
    """Write the run folder that a run would have left."""
    write_run_folder(cell.folder, epochs=1, switch_step=10)

    def edit(record: dict[str, Any]) -> None:
        record.update(command=plan.command(cell), status="complete", seed=cell.seed)
        record["gradient_evaluations"] = evaluations or record["gradient_evaluations"]
        record["optimizer"]["switch"]["step"] = switched

    edit_json(cell.folder / "run.json", edit)


def test_every_method_gets_the_updates_that_the_budget_pays_for(tmp_path: Path) -> None:
    plan = planned(tmp_path / "c", "sgd", "sam", PAPER, f"{PAPER} --switch_at 0.7", "pugd --perturb_every 3")
    assert (plan.updates_an_epoch, plan.gradient_evaluations) == (5, 20)
    assert [method.updates for method in plan.methods] == [20, 10, 13, 16, 15]


def test_a_second_pass_over_fewer_images_leaves_more_updates(tmp_path: Path) -> None:
    half, odd = "pugd --perturb_fraction 0.5", "sam --perturb_fraction 0.17"  # 5 of 24 images
    plan = planned(tmp_path / "c", "pugd", half, odd, f"{PAPER} --switch_at 0 --perturb_every 2 {half[5:]}")
    assert [method.updates for method in plan.methods] == [10, 13, 16, 16]
    assert "--perturb_fraction 0.5" in plan.command(plan.cells()[1])


def test_accumulated_batches_are_one_gradient(tmp_path: Path) -> None:
    plan = planned(tmp_path / "c", words=(*SMALL, "--gradient_accumulation_steps", "2"))
    assert plan.updates_an_epoch == 3


def test_a_last_batch_that_is_dropped_is_no_gradient(tmp_path: Path) -> None:
    words = (*SMALL, "--per_device_train_batch_size", "50")  # 120 images: two batches, and 20 images
    assert planned(tmp_path / "a", words=words).updates_an_epoch == 3
    assert planned(tmp_path / "b", words=(*words, "--dataloader_drop_last", "true")).updates_an_epoch == 2


def test_a_cell_is_one_run_of_the_training_command(tmp_path: Path) -> None:
    plan = planned(tmp_path / "c", "sgd", "sam --radius_beta_max 0.1 --learning_rate 0.3")
    cells = plan.cells()
    assert [(cell.method.label.split()[0], cell.seed) for cell in cells] == [
        ("sgd", 0), ("sam", 0), ("sgd", 1), ("sam", 1),
    ]  # fmt: skip
    for words in ("--opt sam", "--seed 0", "--max_steps 10", "--learning_rate 0.3", "--radius_beta_max 0.1"):
        assert words in plan.command(cells[1])
    assert str(tmp_path) not in plan.command(cells[1])


def test_a_complete_run_is_not_made_again_and_a_broken_one_is(tmp_path: Path) -> None:
    plan = planned(tmp_path / "c")
    cell = plan.cells()[0]
    assert plan.job(cell) is not None
    pretend(plan, cell)
    assert plan.job(cell) is None
    edit_json(cell.folder / "run.json", lambda record: record.update(status="training"))
    job = plan.job(cell)
    assert job is not None
    assert going_on(job.folder) == ["--overwrite"]  # there is no checkpoint to go on from
    edit_json(cell.folder / "run.json", lambda record: record.update(command="another"))
    with pytest.raises(ValueError, match=r"seed-0 holds another run .*take another output_dir"):
        plan.job(cell)


def test_the_same_comparison_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    planned(tmp_path / "c")
    planned(tmp_path / "c", "sgd", "pugd", seeds=range(5))  # more methods, more seeds
    with pytest.raises(ValueError, match=r"holds another comparison \(budget 4, not 5\)"):
        planned(tmp_path / "c", budget=5)
    with pytest.raises(ValueError, match=r"holds another comparison \(words"):
        planned(tmp_path / "c", words=(*SMALL, "--weight_decay", "0.1"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no comparison"):
        planned(tmp_path / "mine")


def test_a_recipe_is_compared_with_what_is_said_for_all_in_place_of_its_own_data(tmp_path: Path) -> None:
    words = (*SMALL, "--dataset", "digits", "--model", "resnet_micro_small")
    methods = [parse_method("sgd"), parse_recipe("cifar10_radius --switch_at 0.5")]
    plan = Comparison(methods, seeds=[0], budget=4, output_dir=tmp_path / "c", words=words)
    assert plan.data_name == "digits"
    assert plan.methods[1].updates == updates_within(plan.gradient_evaluations, FixedSwitch(0.5))
    command = plan.command(plan.cells()[1])
    assert "--recipe cifar10_radius" in command
    _, data, args = parse_arguments(command.split()[5:])
    assert (data.dataset, args.opt, args.radius, args.switch_at) == (
        "digits", "rts_pugd", find_recipe("cifar10_radius").settings["radius"], 0.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("opts", "settings", "message"),
    [
        (["sgd", "sgd"], {}, "'sgd' is there twice"),
        (["sgd", "sam --max_steps 5"], {}, "--max_steps is set by the comparison itself"),
        (["sgd"], {"words": ["--seed=3"]}, "--seed=3 is set by the comparison itself"),
        (["sgd"], {"words": ["--max-steps", "3"]}, "--max-steps is set by the comparison itself"),
        (["sgd --num-train-epochs=7"], {}, "--num-train-epochs=7 is set by the comparison itself"),
        (["sgd"], {"words": ["settings.yaml"]}, "'settings.yaml': a comparison takes no file of settings"),
        (["sgd", "sam --model resnet18"], {}, "another model or data than 'sgd'"),
        (["sgd", "sam --label_noise 0.2"], {}, "another model or data than 'sgd'"),
        (["sgd", "sam --per_device_train_batch_size 3"], {}, "another batch than 'sgd'"),
        (["sgd", "sam --rho 0.1"], {}, "unknown argument --rho; did you mean --radius_beta_max"),
        (["--opt sgd"], {}, "must begin with an optimizer's name"),
        (["sgd", "sgx"], {}, "opt='sgx' is not an optimizer timm knows"),
        (["sgd --perturb_fraction 0.5"], {}, "perturb_fraction=0.5: opt='sgd' has no second pass"),
        (["sgd"], {"budget": 0}, "budget=0 must be greater than 0"),
        (["sgd"], {"seeds": range(0)}, "seeds=0 makes no runs"),
        (["sgd", "sam"], {"budget": 0.2}, "budget=0.2 pays for no update of 'sam'"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_run(
    tmp_path: Path, opts: list[str], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        planned(tmp_path / "c", *opts, **settings)
    assert not (tmp_path / "c").exists()


def test_the_length_of_a_run_whose_switch_listens_is_found_by_pilots(tmp_path: Path) -> None:
    plan = planned(tmp_path / "c", "sgd", LISTENS, budget=40, seeds=[0])
    lengths = []

    def run(cells: list[Cell]) -> None:  # one whose switch fires after half of the updates
        for cell in cells:
            updates = cell.method.updates or 0
            lengths.append(updates)
            pretend(plan, cell, updates + updates // 2, updates // 2)

    assert plan.methods[1].updates is None
    plan.settle_lengths(run)  # type: ignore[arg-type]
    assert lengths == [200, 133]
    assert plan.methods[1].updates == 133  # 199 of 200 gradient evaluations


def test_pilots_of_several_methods_are_made_side_by_side(tmp_path: Path) -> None:
    variance, gap = LISTENS, f"{PAPER} --switch generalization_gap"
    plan = planned(tmp_path / "c", variance, "sgd", gap, budget=40, seeds=[0])
    rounds: list[list[tuple[str, int]]] = []

    def run(cells: list[Cell]) -> None:  # the one fires at once; the other after half, and at the second try late
        rounds.append([(cell.method.label, cell.method.updates or 0) for cell in cells])
        for cell in cells:
            updates = cell.method.updates or 0
            late = 0 if cell.method.label == variance else updates // 2 if updates == 200 else updates
            pretend(plan, cell, 2 * updates - late, late)

    plan.settle_lengths(run)  # type: ignore[arg-type]
    assert rounds[:2] == [[(variance, 200), (gap, 200)], [(variance, 100), (gap, 133)]]
    # Now some took less than the budget and some more, so it is a length between the nearest two.
    assert rounds[2:] == [[(gap, 160)], [(gap, 171)], [(gap, 178)]]
    assert [method.updates for method in plan.methods] == [100, 200, 178]


def test_a_switch_that_only_long_runs_fire_is_searched_for_between(tmp_path: Path) -> None:
    plan = planned(tmp_path / "c", LISTENS, budget=40, seeds=[0])
    lengths = []

    def run(cells: list[Cell]) -> None:  # one whose switch fires after 40 updates of at least 118
        for cell in cells:
            updates = cell.method.updates or 0
            lengths.append(updates)
            pretend(plan, cell, *((updates, None) if updates < 118 else (2 * updates - 40, 40)))

    plan.settle_lengths(run)  # type: ignore[arg-type]
    assert lengths == [200, 111, 143, 132, 128]
    assert plan.methods[0].updates == 128  # 216 of 200 gradient evaluations, where 111 has 111


def test_every_seed_gets_the_length_that_the_budget_pays_for(tmp_path: Path) -> None:
    plan = planned(tmp_path / "c", "sgd", LISTENS, budget=40, seeds=[5, 6, 7])
    rounds: list[list[tuple[int, int]]] = []

    def run(cells: list[Cell]) -> None:  # it fires after half of the updates, with seed 6 at once, with seed 7 never
        rounds.append([(cell.seed, cell.method.updates or 0) for cell in cells])
        for cell in cells:
            updates = cell.method.updates or 0
            plain = {5: updates // 2, 6: 0, 7: updates}[cell.seed]
            pretend(plan, cell, 2 * updates - plain, None if cell.seed == 7 else plain)

    plan.settle_lengths(run, every_seed=False)  # type: ignore[arg-type]
    assert rounds == [[(5, 200)], [(5, 133)]]
    assert [cell.method.updates for cell in plan.cells() if cell.method.label == LISTENS] == [133] * 3
    plan.settle_lengths(run)  # type: ignore[arg-type]
    assert rounds[2:] == [[(5, 133)], [(6, 133), (7, 133)], [(6, 100), (7, 200)]]
    assert [(cell.seed, cell.method.updates) for cell in plan.cells() if cell.method.label == LISTENS] == [
        *((5, 133), (6, 100), (7, 200)),
    ]
    assert {cell.method.updates for cell in plan.cells() if cell.method.label == "sgd"} == {200}


def test_pilots_know_what_a_second_pass_costs(tmp_path: Path) -> None:
    method = f"{LISTENS} --perturb_fraction 0.5"
    plan = planned(tmp_path / "c", method, budget=40, seeds=[0])
    lengths = []

    def run(cells: list[Cell]) -> None:  # one whose switch fires after half of the updates
        for cell in cells:
            updates = cell.method.updates or 0
            lengths.append(updates)
            pretend(plan, cell, updates + 0.5 * (updates - updates // 2), updates // 2)

    plan.settle_lengths(run)  # type: ignore[arg-type]
    assert lengths == [200, 160]
    assert plan.methods[0].updates == 160


def test_a_length_is_settled_again_for_the_learning_rate_that_was_chosen(tmp_path: Path) -> None:
    plan = planned(tmp_path / "c", LISTENS, budget=40, seeds=[3])
    made: list[tuple[float | None, int]] = []

    def run(cells: list[Cell]) -> None:  # one whose switch never fires at first, and halfway at a higher rate
        for cell in cells:
            updates, rate = cell.method.updates or 0, cell.method.learning_rate
            made.append((rate, updates))
            pretend(plan, cell, *((updates, None) if rate is None else (updates + updates // 2, updates // 2)))

    plan.settle_lengths(run)  # type: ignore[arg-type]
    assert plan.methods[0].updates == 200
    plan.methods[0] = plan.tuning_cell(plan.methods[0], 0.4, 0).method
    plan.settle_lengths(run)  # type: ignore[arg-type]
    assert made == [(None, 200), (0.4, 200), (0.4, 133)]
    assert plan.methods[0].updates == 133
    assert len(list((tmp_path / "c" / "pilots").rglob("run.json"))) == len(made)
    # Pilots of another first seed are other runs.
    other = planned(tmp_path / "c", LISTENS, budget=40, seeds=[4])
    other.settle_lengths(run)  # type: ignore[arg-type]
    assert len(made) == 4


def test_a_pilot_that_diverged_settles_nothing(tmp_path: Path) -> None:
    plan = planned(tmp_path / "c", LISTENS, budget=40, seeds=[0])
    made: list[int] = []

    def run(cells: list[Cell]) -> None:  # the second pilot diverges early, and says that no switch has fired
        for cell in cells:
            updates = cell.method.updates or 0
            made.append(updates)
            pretend(plan, cell, *((updates + updates // 2, updates // 2) if len(made) == 1 else (30, None)))
            if len(made) > 1:
                edit_json(cell.folder / "run.json", lambda record: record.update(status="diverged"))

    plan.settle_lengths(run)  # type: ignore[arg-type]
    assert made == [200, 133]
    assert plan.methods[0].updates == 200


def test_a_run_that_diverged_is_a_result_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path / "c", "sgd")
    told: list[str] = []
    cells = plan.cells()

    def run_jobs(jobs: list[Job], **settings: Any) -> Iterator[tuple[Job, str | None]]:
        pretend(plan, cells[0])
        edit_json(cells[0].folder / "run.json", lambda record: record.update(status="diverged"))
        yield jobs[0], "max_skipped_updates=25: it is infinite"
        pretend(plan, cells[1])
        yield jobs[1], None

    monkeypatch.setattr("rts_hf.comparing.comparison.run_jobs", run_jobs)
    make_runs(plan, cells, tell=told.append)
    assert told[0] == "[1/2] runs/sgd/seed-0: diverged: max_skipped_updates=25: it is infinite"
    assert [plan.job(cell) for cell in cells] == [None, None]


def test_a_run_that_a_signal_stopped_is_not_taken_for_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path / "c", "sgd")
    cells = plan.cells()

    def run_jobs(jobs: list[Job], **settings: Any) -> Iterator[tuple[Job, str | None]]:
        for job, cell in zip(jobs, cells, strict=True):
            pretend(plan, cell)
            if cell.seed == 0:
                edit_json(cell.folder / "run.json", lambda record: record.update(status="interrupted"))
            yield job, None

    monkeypatch.setattr("rts_hf.comparing.comparison.run_jobs", run_jobs)
    told: list[str] = []
    with pytest.raises(RuntimeError, match=r"1 of 2 runs failed: runs/sgd/seed-0 \(interrupted; see .*what is missing"):
        make_runs(plan, cells, tell=told.append)
    assert told[0] == "[1/2] runs/sgd/seed-0: failed: interrupted"
    left = plan.job(cells[0])
    assert left is not None
    assert plan.job(cells[1]) is None


def test_runs_that_fail_are_told_after_the_others_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path / "c", "sgd")
    told: list[str] = []
    cells = plan.cells()

    def run_jobs(jobs: list[Job], **settings: Any) -> Iterator[tuple[Job, str | None]]:
        yield jobs[0], "opt='sgd' is tired"
        pretend(plan, cells[1])
        yield jobs[1], None

    monkeypatch.setattr("rts_hf.comparing.comparison.run_jobs", run_jobs)
    with pytest.raises(RuntimeError, match=r"1 of 2 runs failed: runs/sgd/seed-0 \(opt='sgd' is tired; see .*missing"):
        make_runs(plan, cells, tell=told.append)
    assert [line.split(":")[0] for line in told] == ["[1/2] runs/sgd/seed-0", "[2/2] runs/sgd/seed-1"]
    assert plan.job(cells[1]) is None
