#!/usr/bin/env python
"""`rts-hf compare` from a checkout; --help tells its arguments."""

import sys

from rts_hf.cli import run

if __name__ == "__main__":
    run("compare", sys.argv[1:], "python scripts/compare.py")
