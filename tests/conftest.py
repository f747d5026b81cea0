"""How the tests run: one thread a worker, the same examples each time, no network."""

import os
import tempfile
from pathlib import Path

# Before anything below imports the libraries that read them; scripts started by a test inherit them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("FAITHFUL_VIT_CACHE", str(Path(tempfile.gettempdir()) / "faithful-vit-test-cache"))
IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IN_WORKER:
    os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

if IN_WORKER:
    torch.set_num_threads(1)

# A deadline would measure the machine, not the code.
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")
