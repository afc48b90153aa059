#!/usr/bin/env python
"""Publish a finished run as a model repository on the Hugging Face Hub, with a card that tells what was measured.

python scripts/publish.py runs/digits-resnet_micro_small-rts_pugd --repo user/name --dry_run
python scripts/publish.py runs/digits-resnet_micro_small-rts_pugd --repo user/name --private --tag v1
python scripts/publish.py runs/digits-resnet_micro_small-rts_pugd --repo user/name --space
"""

import argparse
import sys

from rts_hf.publishing import Publication, publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", metavar="RUN", help="Folder of a complete run.")
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="Repository; made if it does not exist.")
    parser.add_argument("--dry_run", action="store_true", help="Only list what would be sent; needs no network.")
    parser.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    parser.add_argument("--revision", help="Branch to commit to; made if it does not exist. Default: main.")
    parser.add_argument("--tag", help="Name to give the commit.")
    parser.add_argument("--license", help="Of the weights, as the Hub spells it, e.g. apache-2.0. Default: not told.")
    parser.add_argument("--include_checkpoints", action="store_true", help="Also checkpoints, with optimizer state.")
    parser.add_argument(
        "--space",
        nargs="?",
        const=True,
        default=False,
        metavar="USER/NAME",
        help="Also publish a Gradio Space that shows the model. Default name: that of the repository.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace another model, or Space, that is there.")
    arguments = vars(parser.parse_args())
    published = publish(arguments.pop("run_dir"), arguments.pop("repo"), **arguments)
    report(published, "", arguments["dry_run"])
    if published.space is not None:
        report(published.space, "the Space ", arguments["dry_run"])


def report(published: Publication, kind: str, dry_run: bool) -> None:
    for path, size in published.files.items():
        print(f"{size:>12,}  {path}")
    total = f"{len(published.files)} files, {sum(published.files.values()):,} bytes"
    if dry_run:
        print(f"{total} would be published in {kind}{published.repo_id}. Nothing was sent.")
    elif published.url is None:
        print(f"{total}; {kind}{published.repo_id} holds them all already.")
    else:
        print(f"{total} published: {published.url}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
