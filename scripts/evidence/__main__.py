#!/usr/bin/env python
"""Make the evidence's tables and pictures from the committed records, or run the experiments behind them again.

python scripts/evidence                                        # from the records, seconds
python scripts/evidence --rerun digits_noise-100 --jobs 2      # one comparison again, then the same
python scripts/evidence --rerun all --methods rts_pugd         # one method in all of them, the others' records kept
"""

import argparse
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from benchmark import report as benchmark_report  # noqa: E402
from evidence.document import write_evidence  # noqa: E402
from evidence.records import METHODS, commands, keep  # noqa: E402

from rts_hf.cli import run  # noqa: E402
from rts_hf.reports.figures import draw_run_figures  # noqa: E402

SHOWN_RUN = "digits_rts_pugd"  # whose curves README shows


def main() -> None:
    names = [name for name, _ in commands("")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--records", default=str(ROOT / "model_cards" / "evidence"), metavar="DIR", help="Where they lie."
    )
    parser.add_argument(
        "--rerun", nargs="+", default=[], choices=["all", *names], metavar="NAME", help=f"all, or {', '.join(names)}."
    )
    parser.add_argument(
        "--output_dir", default="comparisons", metavar="DIR", help="Of the runs (default: %(default)s)."
    )
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, choices=METHODS, metavar="NAME", help=f"Of {', '.join(METHODS)}."
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="Of each method (default: 10; 5 of pretrained weights).")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="Runs at a time (default: %(default)s).")
    arguments = parser.parse_args()
    told = {name: getattr(arguments, name) for name in ("methods", "seeds", "jobs")}
    for name, words in commands(arguments.output_dir, **told):
        if name in arguments.rerun or "all" in arguments.rerun:
            print(f"rts-hf compare {shlex.join(words)}", flush=True)
            run("compare", words, "rts-hf compare")
            keep(Path(arguments.output_dir) / name, Path(arguments.records) / name)
    is_own = Path(arguments.records).resolve() == ROOT / "model_cards" / "evidence"
    written = write_evidence(arguments.records, ROOT / "README.md" if is_own else None)
    cards = Path(arguments.records).parent
    if (cards / "benchmark" / "benchmark.json").is_file():
        written += benchmark_report.write_page(cards / "benchmark" / "benchmark.json")
    if (cards / SHOWN_RUN).is_dir():
        written += draw_run_figures(cards / SHOWN_RUN)
    for path in dict.fromkeys(written):
        print(path)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
