"""Words for people: the only room that prints, the only one that imports typer and rich.

A command lives for a moment: it need not look for garbage while it loads, nor have numpy start threads for algebra
that it does not do (PyTorch has its own).
"""

import gc
import os

gc.set_threshold(100_000, 20, 20)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
