"""The type of arrays. numpy has one too, in a module that takes longer to load than many a command to run."""

from typing import Any, TypeVar

import numpy as np

Scalar = TypeVar("Scalar", bound=np.generic, covariant=True)
Array = np.ndarray[tuple[Any, ...], np.dtype[Scalar]]
Bytes = Array[np.uint8]
