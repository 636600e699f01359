"""Tensors as PyTorch knows them, in and out of the store."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from modelgit.errors import FormatError
from modelgit.formats.dtypes import DTYPES
from modelgit.store.files.tensors import StoredTensors

FROM_TORCH = {dtype.torch: name for name, dtype in DTYPES.items() if dtype.torch is not None}


def load_tensor(source: StoredTensors, name: str) -> Tensor:
    """Returns one tensor of a version, on the CPU; only its bytes are read, and they are verified."""
    entry = source.entry(name)
    dtype = getattr(torch, DTYPES[entry.dtype].torch or "", None)
    if not isinstance(dtype, torch.dtype):
        raise FormatError(f"tensor '{name}': PyTorch has no type for {entry.dtype}", hint="read its bytes instead")
    data = source.read(name)
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.reshape(entry.shape)


def load_state(source: StoredTensors) -> dict[str, Tensor]:
    """Returns all tensors of a version as a state dict."""
    return {name: load_tensor(source, name) for name in source.names()}


def raw_tensors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, str, tuple[int, ...], memoryview]]:
    """Yields (name, dtype, shape, little-endian bytes) of each tensor of a state dict.

    Raises:
        FormatError: a tensor of a type that safetensors cannot hold.
    """
    for name, tensor in state.items():
        yield name, dtype_name(name, tensor), tuple(tensor.shape), tensor_bytes(tensor)


def dtype_name(name: str, tensor: Tensor) -> str:
    """Returns the safetensors name of the tensor's type."""
    word = str(tensor.dtype).removeprefix("torch.")
    if word not in FROM_TORCH:
        known: Iterable[str] = sorted(filter(None, FROM_TORCH))
        raise FormatError(f"tensor '{name}': cannot store type {word}", hint=f"known types: {', '.join(known)}")
    return FROM_TORCH[word]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Returns the tensor's bytes in row-major order, without a copy where it already lies so on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy().data)


def torch_version() -> str:
    """Returns the version of PyTorch in use."""
    return str(torch.__version__)


def numpy_version() -> str:
    """Returns the version of NumPy in use."""
    return np.__version__


__all__ = [
    "Tensor",
    "load_state",
    "load_tensor",
    "numpy_version",
    "raw_tensors",
    "tensor_bytes",
    "torch_version",
]
