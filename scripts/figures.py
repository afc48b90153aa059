#!/usr/bin/env python
"""Draw pictures that compare finished runs, from their folders alone.

python scripts/figures.py runs/a runs/b --output_dir pictures
python scripts/figures.py runs/a runs/b --output_dir pictures --landscape

histories: loss and accuracy by gradient evaluations. strategies: what α the strategies take. With --landscape also the
loss around each run's weights, and on the lines from the first run's to the others'; stopped, it goes on where it was.
"""

import argparse
import sys

from rts_hf.pictures_of_runs import draw_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="Folders of runs; --landscape needs their weights.")
    parser.add_argument("--output_dir", required=True, help="Where the pictures go; made if it does not exist.")
    parser.add_argument("--landscape", action="store_true", help="Also loss surfaces and lines; takes minutes.")
    parser.add_argument("--points", type=int, default=21, help="Of each axis of a surface, odd. (default: %(default)s)")
    parser.add_argument("--span", type=float, default=1.0, help="Reach of a surface. (default: %(default)s)")
    parser.add_argument("--images", type=int, default=512, help="Training images at most. (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="Of the random directions. (default: %(default)s)")
    parser.add_argument("--disable_tqdm", action="store_true", help="Show no progress bars.")
    arguments = vars(parser.parse_args())
    for path in draw_pictures(arguments.pop("runs"), arguments.pop("output_dir"), **arguments):
        print(path)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the rows that are done")
