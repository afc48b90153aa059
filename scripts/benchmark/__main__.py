#!/usr/bin/env python
"""Measure what the method costs, and print each figure beside its target.

python scripts/benchmark                                    # all figures, ten minutes on two cores
python scripts/benchmark --figures operations memory        # some of them
python scripts/benchmark --from_record                      # its page's tables and plot from the committed record
python scripts/benchmark --rerun_variants --jobs 2          # the accuracy of cheaper variants again, half an hour
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from benchmark import report as benchmark_report  # noqa: E402
from benchmark import variants as benchmark_variants  # noqa: E402

from rts_hf.cli import run  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--figures", nargs="+", default=[*benchmark_report.MEASURES], choices=[*benchmark_report.MEASURES],
        metavar="NAME", help=f"Of {', '.join(benchmark_report.MEASURES)} (default: all).",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s).")
    parser.add_argument("--output", metavar="FILE", help="Write what was measured there, as JSON.")
    parser.add_argument(
        "--from_record", action="store_true", help="Measure nothing: write the page's part from the record."
    )
    parser.add_argument(
        "--record", default=str(ROOT / "model_cards" / "benchmark" / "benchmark.json"), metavar="FILE",
        help="Committed record (default: %(default)s).",
    )  # fmt: skip
    parser.add_argument(
        "--rerun_variants", action="store_true", help="Train the cheaper variants again, and keep their results."
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="Runs at a time (default: %(default)s).")
    parser.add_argument("--output_dir", default="comparisons/variants", metavar="DIR", help="Of the variants' runs.")
    arguments = parser.parse_args()
    if arguments.rerun_variants:
        words = benchmark_variants.command(arguments.output_dir, jobs=arguments.jobs)
        print(f"rts-hf compare {shlex.join(words)}", flush=True)
        run("compare", words, "rts-hf compare")
        benchmark_variants.keep(arguments.output_dir, Path(arguments.record).parent)
        arguments.from_record = True
    if arguments.from_record:
        for path in benchmark_report.write_page(arguments.record):
            print(path)
        return
    measured = benchmark_report.measure(arguments.figures, arguments.device)
    print(benchmark_report.summary(measured))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
