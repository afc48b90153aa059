#!/usr/bin/env python
"""Compare optimizers at an equal budget of gradient evaluations, with seeds and intervals.

    python scripts/compare.py --opts sgd sam pugd rts_pugd --seeds 5 --budget 30 --output_dir comparisons/digits
    python scripts/compare.py --opts sgd "rts_pugd --switch_at 0.9" --tune 2 --jobs 2 --output_dir comparisons/late \\
        --dataset photo_patches --weight_decay 1e-3

Options that are not listed below are those of scripts/train.py, and go to every run.
"""

import argparse
import shlex
import sys
from pathlib import Path

from rts_hf.compare import compare, plan


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="Optimizers; in quotes also with options of their own.",
    )
    parser.add_argument(
        "--recipes", nargs="+", default=[], metavar="NAME", help="Recipes, as optimizers; train.py --list_recipes."
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="Runs of each (default: 5).")
    parser.add_argument("--first_seed", type=int, default=0, metavar="SEED", help="The others follow (default: 0).")
    parser.add_argument(
        "--budget", type=float, default=30.0, metavar="E",
        help="Gradient evaluations of a run, in passes over the training images (default: 30).",
    )  # fmt: skip
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="Where runs, tables and pictures go.")
    parser.add_argument(
        "--tune", type=int, default=0, metavar="N",
        help="Choose each learning rate on the validation split, with N runs for each that is tried.",
    )  # fmt: skip
    parser.add_argument(
        "--learning_rates", type=float, nargs="+", metavar="LR", help="What --tune tries. Default: around each default."
    )
    parser.add_argument(
        "--trials", metavar="FILE", help="Take the learning rates that an earlier comparison chose: its trials.csv."
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="Runs at a time (default: 1).")
    parser.add_argument(
        "--validation_only", action="store_true",
        help="Leave the test split unread and compare on validation: to choose settings.",
    )  # fmt: skip
    parser.add_argument("--backend", choices=["local", "ray"], default="local", help="Where runs are made.")
    parser.add_argument(
        "--print_commands",
        action="store_true",
        help="Only print the commands of the runs that are missing, for any scheduler; those begun last.",
    )
    arguments, words = parser.parse_known_args()
    settings = vars(arguments)
    settings["words"] = words
    if settings.pop("print_commands"):
        print_commands(settings)
        return
    command = shlex.join(["python", "scripts/compare.py", *sys.argv[1:]])
    compare(settings.pop("opts"), **settings, command=command, tell=lambda line: print(line, flush=True))
    folder = Path(arguments.output_dir)
    print(f"\n{(folder / 'table.md').read_text(encoding='utf-8')}\nReport: {folder / 'report.html'}")


def print_commands(settings: dict) -> None:
    if settings["tune"]:
        sys.exit("error: --print_commands cannot choose learning rates; give --opts 'NAME --learning_rate LR' instead.")
    if settings["validation_only"]:
        sys.exit("error: --print_commands: the training command reads the test split; leave --validation_only out.")
    comparison = plan(settings.pop("opts"), **settings)
    for method in comparison.methods:
        if method.updates is None:
            sys.exit(f"error: --print_commands: only pilot runs tell how long {method.label!r} may be; leave it out.")
    new, begun = list[str](), list[str]()
    for cell in comparison.cells():
        job = comparison.job(cell)
        if job is not None:
            where = job.words[job.words.index("--output_dir") :]
            (begun if len(where) > 2 else new).append(f"{comparison.command(cell)} {shlex.join(where)}")
    if begun:
        begun.insert(0, "# begun, to go on with if no longer running:")
    for line in (*new, *begun):
        print(line)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
