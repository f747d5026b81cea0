"""Seconds and memory of every explanation method and of ABPC: our way, the published way, and what can be installed.

    python benchmarks/explain.py --save                                  # about 8 minutes on two CPU cores
    python benchmarks/explain.py --models vit_base_patch16_224 --save    # about 30
    python benchmarks/explain.py --device cuda --batches 64 1 --models vit_small_patch16_224 vit_base_patch16_224

The installable counterparts are measured where they are there: `pip install captum grad-cam`. First it proves in double
precision that ours gives the numbers of the published way; exit code 1 where it does not. Only starts explain_run.py:
as a module, this file would have the name of the package it measures.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # ahead of this folder

from explain_run import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__))
