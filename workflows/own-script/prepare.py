"""Write scikit-learn's 1,797 digits (8×8 grey values) to an .npz file that `hpcmass shard` reads."""

from __future__ import annotations

import sys

import numpy as np
from sklearn.datasets import load_digits

images, labels = load_digits(return_X_y=True)
np.savez(sys.argv[1], image=(images / 16).astype(np.float32), label=labels.astype(np.int64))
