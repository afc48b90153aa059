"""The commands: ``rts-hf train``, ``compare``, ``figures``, ``publish``, ``demo`` and ``recipes``.

Each is a parser and one call. What a command needs is imported when it is called, so that help comes at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rts_hf.publishing.hub import Publication

_TRAIN = """Train a timm backbone on an image data set with RTS-PUGD, or with any optimizer timm knows.

    accelerate launch {command} --opt rts_pugd
    accelerate launch {command} --dataset cifar10 --model resnet18 --num_train_epochs 200 --output_dir runs/mine
    accelerate launch {command} --recipe cifar10_radius --num_train_epochs 100
    accelerate launch {command} settings.yaml

The arguments may stand in a YAML or JSON file instead, whose keys are the names below without the dashes. What is given
here goes before what stands in the file, and that before what a recipe says.
"""
_COMPARE = """Compare optimizers at an equal budget of gradient evaluations, with seeds and intervals.

    {command} --opts sgd sam pugd rts_pugd --seeds 5 --budget 30 --output_dir comparisons/digits
    {command} --opts sgd "rts_pugd --switch_at 0.9" --tune 2 --jobs 2 --output_dir comparisons/late \\
        --dataset photo_patches --weight_decay 1e-3

Options that are not listed below are those of the training command, and go to every run.
"""
_FIGURES = """Draw pictures that compare finished runs, from their folders alone.

    {command} runs/a runs/b --output_dir pictures
    {command} runs/a runs/b --output_dir pictures --landscape

histories: loss and accuracy by gradient evaluations. strategies: what α the strategies take. With --landscape also the
loss around each run's weights, and on the lines from the first run's to the others'; stopped, it goes on where it was.
"""
_PUBLISH = """Publish a finished run as a model repository on the Hugging Face Hub, with a card of what was measured.

    {command} runs/digits-resnet_micro_small-rts_pugd --repo user/name --dry_run
    {command} runs/digits-resnet_micro_small-rts_pugd --repo user/name --private --tag v1
    {command} runs/digits-resnet_micro_small-rts_pugd --repo user/name --space
"""


def main(words: Sequence[str] | None = None) -> None:
    """Run the command that the first word names, as the program ``rts-hf`` and ``python -m rts_hf`` do.

    Args:
        words: The command line without the program's name; by default the process's own.

    Raises:
        SystemExit: At the end of ``--help``, and with a message where something is wrong.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return
    name, *rest = words
    if name not in COMMANDS:
        sys.exit(f"error: there is no command {name!r}; choose one of {', '.join(COMMANDS)}.")
    program = "rts-hf" if Path(sys.argv[0]).name == "rts-hf" else "-m rts_hf" if name == "train" else "python -m rts_hf"
    run(name, rest, f"{program} {name}")


def run(name: str, words: Sequence[str], command: str) -> None:
    """Run one command, and leave with a message instead of a traceback where its arguments or its data are wrong.

    Args:
        name: Of the command.
        words: Its arguments.
        command: How it was called, as help and reports tell it.
    """
    try:
        COMMANDS[name](list(words), command)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def train(words: list[str], command: str) -> None:
    """Train a backbone and leave a complete run folder."""
    from rts_hf.runs.command_line import parse_arguments

    arguments = parse_arguments(words, description=_TRAIN.format(command=command), program=command)
    from rts_hf.runs.run import train  # late: --help, --list_recipes and a slip of the pen need not wait for it
    from rts_hf.training.faults import TrainingFault

    try:
        train(*arguments)
    except TrainingFault as error:
        sys.exit(f"error: {error}")


def compare(words: list[str], command: str) -> None:
    """Compare optimizers at an equal budget of gradients, over seeds."""
    parser = _parser(_COMPARE, command)
    add = parser.add_argument
    add("--opts", nargs="+", default=[], metavar="NAME", help="Optimizers; in quotes also with options of their own.")
    add("--recipes", nargs="+", default=[], metavar="NAME", help="Recipes, as optimizers; `recipes` lists them.")
    add("--seeds", type=int, default=5, metavar="N", help="Runs of each (default: 5).")
    add("--first_seed", type=int, default=0, metavar="SEED", help="The others follow (default: 0).")
    add(
        "--budget", type=float, default=30.0, metavar="E",
        help="Gradient evaluations of a run, in passes over the training images (default: 30).",
    )  # fmt: skip
    add("--output_dir", required=True, metavar="DIR", help="Where runs, tables and pictures go.")
    add(
        "--tune", type=int, default=0, metavar="N",
        help="Choose each learning rate on the validation split, with N runs for each that is tried.",
    )  # fmt: skip
    add("--learning_rates", type=float, nargs="+", metavar="LR", help="What --tune tries (default: around each own).")
    add("--trials", metavar="FILE", help="Take the learning rates that an earlier comparison chose: its trials.csv.")
    add("--jobs", type=int, default=1, metavar="N", help="Runs at a time (default: 1).")
    add(
        "--validation_only", action="store_true",
        help="Leave the test split unread and compare on validation: to choose settings.",
    )  # fmt: skip
    add("--backend", choices=["local", "ray"], default="local", help="Where runs are made.")
    add(
        "--print_commands", action="store_true",
        help="Only print the commands of the runs that are missing, for any scheduler; those begun last.",
    )  # fmt: skip
    arguments, others = parser.parse_known_args(words)
    settings = {**vars(arguments), "words": others}
    from rts_hf.comparing.compare import compare, missing_commands

    try:
        if settings.pop("print_commands"):
            for line in missing_commands(settings.pop("opts"), **settings):
                print(line)
            return
        told = shlex.join([*command.split(), *words])
        compare(settings.pop("opts"), **settings, command=told, tell=lambda line: print(line, flush=True))
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    folder = Path(arguments.output_dir)
    print(f"\n{(folder / 'table.md').read_text(encoding='utf-8')}\nReport: {folder / 'report.html'}")


def figures(words: list[str], command: str) -> None:
    """Draw pictures that compare finished runs."""
    parser = _parser(_FIGURES, command)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="Folders of runs; --landscape needs their weights.")
    add("--output_dir", required=True, help="Where the pictures go; made if it does not exist.")
    add("--landscape", action="store_true", help="Also loss surfaces and lines; takes minutes.")
    add("--points", type=int, default=21, help="Of each axis of a surface, odd. (default: %(default)s)")
    add("--span", type=float, default=1.0, help="Reach of a surface. (default: %(default)s)")
    add("--images", type=int, default=512, help="Training images at most. (default: %(default)s)")
    add("--seed", type=int, default=0, help="Of the random directions. (default: %(default)s)")
    add("--disable_tqdm", action="store_true", help="Show no progress bars.")
    arguments = vars(parser.parse_args(words))
    from rts_hf.comparing.pictures import draw_pictures

    try:
        for path in draw_pictures(arguments.pop("runs"), arguments.pop("output_dir"), **arguments):
            print(path)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the rows that are done")


def publish(words: list[str], command: str) -> None:
    """Publish a finished run on the Hub, with a Space if asked."""
    parser = _parser(_PUBLISH, command)
    add = parser.add_argument
    add("run_dir", metavar="RUN", help="Folder of a complete run.")
    add("--repo", required=True, metavar="USER/NAME", help="Repository; made if it does not exist.")
    add("--dry_run", action="store_true", help="Only list what would be sent; needs no network.")
    add("--private", action="store_true", default=None, help="Make a new repository private.")
    add("--revision", help="Branch to commit to; made if it does not exist. Default: main.")
    add("--tag", help="Name to give the commit.")
    add("--license", help="Of the weights, as the Hub spells it, e.g. apache-2.0. Default: not told.")
    add("--include_checkpoints", action="store_true", help="Also checkpoints, with optimizer state.")
    add(
        "--space", nargs="?", const=True, default=False, metavar="USER/NAME",
        help="Also publish a Gradio Space that shows the model. Default name: that of the repository.",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="Replace another model, or Space, that is there.")
    arguments = vars(parser.parse_args(words))
    from rts_hf.publishing.hub import publish

    published = publish(arguments.pop("run_dir"), arguments.pop("repo"), **arguments)
    _tell(published, "", arguments["dry_run"])
    if published.space is not None:
        _tell(published.space, "the Space ", arguments["dry_run"])


def demo(words: list[str], command: str) -> None:
    """Open a page on this machine that shows a run's model."""
    parser = _parser("Show a run's model in the browser: drop an image, see the class probabilities.\n", command)
    parser.add_argument("run", metavar="RUN", help="Folder of a complete run, or the repository it was published in.")
    run = parser.parse_args(words).run
    if not Path(run).is_dir() and run.count("/") != 1:
        raise ValueError(f"RUN={run!r} is no folder; name that of a complete run, or a repository as user/name.")
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the demo needs gradio: pip install 'rts_hf[space]'.")
    from rts_hf.publishing import demo

    demo.build(demo.find_folder(run)).launch()


def recipes(words: list[str], command: str) -> None:
    """List the recipes and the figures recorded for them."""
    _parser("List the recipes, settings by name, and the figures recorded for them.\n", command).parse_args(words)
    from rts_hf.recipes.recorded import recipes_table

    print(recipes_table())


COMMANDS: dict[str, Callable[[list[str], str], None]] = {
    "train": train,
    "compare": compare,
    "figures": figures,
    "publish": publish,
    "demo": demo,
    "recipes": recipes,
}


def _overview() -> str:
    rows = (f"  {name:9} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items())
    return "\n".join(
        [
            "usage: rts-hf COMMAND [arguments]",
            "",
            "RTS-PUGD, a sharpness-aware optimizer, for timm backbones on HuggingFace data sets.",
            "",
            *rows,
            "",
            "rts-hf COMMAND --help tells a command's arguments. `rts-hf train` with nothing else trains on an embedded",
            "data set in about a minute; on several devices: accelerate launch -m rts_hf train.",
        ]
    )


def _parser(description: str, command: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=command,
        description=description.format(command=command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _tell(published: Publication, kind: str, dry_run: Any) -> None:
    for path, size in published.files.items():
        print(f"{size:>12,}  {path}")
    total = f"{len(published.files)} files, {sum(published.files.values()):,} bytes"
    if dry_run:
        print(f"{total} would be published in {kind}{published.repo_id}. Nothing was sent.")
    elif published.url is None:
        print(f"{total}; {kind}{published.repo_id} holds them all already.")
    else:
        print(f"{total} published: {published.url}")
