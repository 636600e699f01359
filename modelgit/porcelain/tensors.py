"""Tensors as PyTorch knows them, in and out of the store."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from modelgit.errors import FormatError, UsageError
from modelgit.formats.dtypes import DTYPES
from modelgit.formats.manifest import TensorEntry
from modelgit.store.files.tensors import StoredTensors

FROM_TORCH = {dtype.torch: name for name, dtype in DTYPES.items() if dtype.torch is not None}


def load_tensor(source: StoredTensors, name: str) -> Tensor:
    """Returns one tensor of a version, on the CPU; only its bytes are read, and they are verified."""
    return tensor_of(source.entry(name), source.entry(name).shape, source.read(name))


def tensor_of(entry: TensorEntry, shape: Sequence[int], data: bytearray) -> Tensor:
    """Returns the tensor of `shape` whose little-endian bytes `data` holds, over the same memory.

    Raises:
        FormatError: PyTorch has no such type.
    """
    dtype = getattr(torch, DTYPES[entry.dtype].torch or "", None)
    if not isinstance(dtype, torch.dtype):
        raise FormatError(
            f"tensor '{entry.name}': PyTorch has no type for {entry.dtype}", hint="read its bytes: load(rev).raw(name)"
        )
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.reshape(tuple(shape))


def device_named(device: str | torch.device) -> torch.device:
    """Returns a device that PyTorch can use here. Raises UsageError for another."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UsageError(
            f"device '{device}' cannot be used here: {reason[:200]}", hint="without one: the CPU"
        ) from error
    return found


def load_state(source: StoredTensors) -> dict[str, Tensor]:
    """Returns all tensors of a version as a state dict."""
    return {name: load_tensor(source, name) for name in source.names()}


def raw_tensors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, str, tuple[int, ...], memoryview]]:
    """Yields (name, dtype, shape, little-endian bytes) of each tensor of a state dict.

    Raises:
        FormatError: a tensor of a type that safetensors cannot hold, sparse, quantised, or without values.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise FormatError(f"tensor '{name}': expected a dense one with its values, got {tensor.layout}")
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
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy().data)


def torch_version() -> str:
    """Returns the version of PyTorch in use."""
    return str(torch.__version__)


def numpy_version() -> str:
    """Returns the version of NumPy in use."""
    return np.__version__


__all__ = [
    "Tensor",
    "device_named",
    "load_state",
    "load_tensor",
    "numpy_version",
    "raw_tensors",
    "tensor_bytes",
    "tensor_of",
    "torch_version",
]
