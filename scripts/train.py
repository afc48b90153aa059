#!/usr/bin/env python
"""`rts-hf train` from a checkout; --help tells its arguments."""

import sys

from rts_hf.cli import run

if __name__ == "__main__":
    run("train", sys.argv[1:], "scripts/train.py")
