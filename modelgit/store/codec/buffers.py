"""One thread's scratch memory, used again for every frame: fresh pages would cost more than the work done in them."""

import threading

import numpy as np
import zstandard

from modelgit.store.codec.arrays import Bytes

WINDOW_LOG = 17
BLOB_WINDOW_LOG = 22  # the largest window a frame of this store may ask for


class Tools(threading.local):
    """One thread's compressors and buffers."""

    def __init__(self) -> None:
        huffman = zstandard.ZstdCompressionParameters(
            window_log=WINDOW_LOG,
            hash_log=6,
            chain_log=6,
            search_log=1,
            min_match=7,
            target_length=0,
            strategy=zstandard.STRATEGY_FAST,
        )
        blob = zstandard.ZstdCompressionParameters.from_level(3, window_log=BLOB_WINDOW_LOG)
        self.huffman = zstandard.ZstdCompressor(compression_params=huffman)
        self.general = zstandard.ZstdCompressor(compression_params=blob)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=1 << BLOB_WINDOW_LOG)
        self._buffers: dict[str, Bytes] = {}

    def buffer(self, name: str, size_bytes: int) -> Bytes:
        """Return the thread's buffer of that name, at least as long as needed, cut to `size_bytes`."""
        found = self._buffers.get(name)
        if found is None or len(found) < size_bytes:
            found = self._buffers[name] = np.empty(size_bytes, np.uint8)
        return found[:size_bytes]


TOOLS = Tools()
