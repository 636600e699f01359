"""Random numbers for masks: a stream that follows from a seed, and can be had from any place on.

They come from PCG64's raw stream, which never changes, 32 bits an element: a mask is the same for any blocks, any
number of threads and any order of the models.
"""

import hashlib

import numpy as np

from modelgit.merge.blocks.tensors import Inputs
from modelgit.merge.blocks.vectors import Draws


def draws(seed: str, start: int, count: int) -> Draws:
    """Return elements `start` to `start + count` of a seed's stream, (count,) uint32."""
    generator = np.random.PCG64(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little"))
    generator.advance(start // 2)
    first = start % 2
    raw: Draws = generator.random_raw((first + count + 1) // 2).astype("<u8", copy=False).view("<u4")
    return raw[first : first + count]


def seed_of(block: Inputs, seed: int, head: int) -> str:
    """Return what a head's mask of this tensor is seeded with."""
    return f"{seed}\n{block.name}\n{block.keys[head]}"
