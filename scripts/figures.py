#!/usr/bin/env python
"""`rts-hf figures` from a checkout; --help tells its arguments."""

import sys

from rts_hf.cli import run

if __name__ == "__main__":
    run("figures", sys.argv[1:], "python scripts/figures.py")
