"""``python -m rts_hf train ...``: the commands of an installed package, also under ``accelerate launch -m``."""

from rts_hf.cli import main

if __name__ == "__main__":
    main()
