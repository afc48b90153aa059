#!/usr/bin/env python
"""Train a timm backbone on an image data set with RTS-PUGD, or with any optimizer timm knows.

    accelerate launch scripts/train.py --opt rts_pugd
    accelerate launch scripts/train.py --dataset cifar10 --model resnet18 --num_train_epochs 200 --output_dir runs/mine
    accelerate launch scripts/train.py --recipe cifar10_radius --num_train_epochs 100
    accelerate launch scripts/train.py settings.yaml

The arguments may stand in a YAML or JSON file instead, whose keys are the names below without the dashes. What is given
here goes before what stands in the file, and that before what a recipe says.
"""

import sys

from rts_hf.cli import parse_arguments
from rts_hf.faults import TrainingFault

if __name__ == "__main__":
    try:
        arguments = parse_arguments(sys.argv[1:], description=__doc__)
        from rts_hf.runs import train  # late: --help, --list_recipes and a slip of the pen need not wait for it

        train(*arguments)
    except (ValueError, OSError, TrainingFault) as error:
        sys.exit(f"error: {error}")
