#!/usr/bin/env python
"""`rts-hf publish` from a checkout; --help tells its arguments."""

import sys

from rts_hf.cli import run

if __name__ == "__main__":
    run("publish", sys.argv[1:], "python scripts/publish.py")
