#!/usr/bin/env python
"""Make the tables and pictures of README's evidence from the committed records, or run its experiments again.

python scripts/evidence.py                                        # from the records, seconds
python scripts/evidence.py --rerun digits_noise-100 --jobs 2      # one comparison again, then the same
python scripts/evidence.py --rerun all --jobs 2                   # all of them and the landscapes, hours
"""

import argparse
import runpy
import shlex
import sys
from pathlib import Path

from rts_hf.evidence import write_evidence
from rts_hf.evidence_records import LANDSCAPE, commands, keep, measure_landscapes

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    names = [*(name for name, _ in commands("")), "landscape"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--records", default=str(ROOT / "model_cards" / "evidence"), metavar="DIR", help="Where they lie."
    )
    parser.add_argument("--readme", default=str(ROOT / "README.md"), metavar="FILE", help="What is brought up to date.")
    parser.add_argument(
        "--rerun", nargs="+", default=[], choices=["all", *names], metavar="NAME", help=f"all, or {', '.join(names)}."
    )
    parser.add_argument(
        "--output_dir", default="comparisons", metavar="DIR", help="Of the runs (default: %(default)s)."
    )
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="Of each method (default: %(default)s).")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="Runs at a time (default: %(default)s).")
    arguments = parser.parse_args()
    for name, words in commands(arguments.output_dir, seeds=arguments.seeds, jobs=arguments.jobs):
        if name in arguments.rerun or "all" in arguments.rerun:
            print(f"python scripts/compare.py {shlex.join(words)}", flush=True)
            sys.argv = [str(ROOT / "scripts" / "compare.py"), *words]
            runpy.run_path(sys.argv[0], run_name="__main__")
            keep(Path(arguments.output_dir) / name, Path(arguments.records) / name)
    if {"all", "landscape", LANDSCAPE} & set(arguments.rerun):  # they are of that comparison's runs
        measure_landscapes(Path(arguments.output_dir) / LANDSCAPE, Path(arguments.records) / "landscape")
    for path in write_evidence(arguments.records, arguments.readme):
        print(path)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
