"""Bare state dicts as safetensors and `.pth` files, the same bytes every time.

Which models are exported and where the files go is not known here.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sr_models.export.half import halve

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def serialise_weights(
    state: Mapping[str, Tensor], metadata: Mapping[str, str], *, half: bool = False
) -> bytes:
    """A safetensors file: floating tensors as fp32, integers and booleans as they are.

    With `half`, floating tensors are fp16 (`half.py`).

    The library's own writer puts metadata in the order of a randomly seeded hash table; here names
    are sorted, so equal tensors and metadata give equal bytes.

    Raises:
        ValueError: a tensor has a dtype that such a file cannot hold, or a value is too large.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    blocks: list[bytes] = []
    offset = 0
    for name, dtype, shape, block in _entries(halve(state) if half else state, half):
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [offset, offset + len(block)],
        }
        blocks.append(block)
        offset += len(block)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start on a multiple of 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, *blocks])


def serialise_pth(state: Mapping[str, Tensor]) -> bytes:
    """A `.pth` file of tensors alone, fp32, under the key `params`, as spandrel and BasicSR read.

    `torch.load(..., weights_only=True)` opens it; equal tensors give equal bytes.
    """
    plain = {
        name: (t.float() if t.is_floating_point() else t).detach().cpu().contiguous().clone()
        for name, t in sorted(state.items())
    }
    buffer = io.BytesIO()  # a file's own name would go into its bytes
    torch.save({"params": plain}, buffer)
    return buffer.getvalue()


def digest_weights(state: Mapping[str, Tensor]) -> str:
    """sha256 of names, dtypes, shapes and values as `serialise_weights` would store them."""
    digest = hashlib.sha256()
    for name, dtype, shape, block in _entries(state):
        digest.update(f"{name} {dtype} {shape} ".encode())
        digest.update(block)
    return digest.hexdigest()


def _entries(
    state: Mapping[str, Tensor], half: bool = False
) -> list[tuple[str, str, list[int], bytes]]:
    """(name, dtype, shape, little-endian bytes) of every tensor; the widest dtypes come first."""
    found = []
    for name, tensor in sorted(state.items()):
        value = tensor.detach().cpu()
        if value.is_floating_point() and not half:
            value = value.float()
        if value.dtype not in _NAMES:
            raise ValueError(
                f"tensor {name!r} is {value.dtype}, which the weights file cannot hold"
            )
        array = value.contiguous().numpy()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        found.append((value.element_size(), name, _NAMES[value.dtype], list(array.shape), little))
    found.sort(key=lambda entry: (-entry[0], entry[1]))  # keeps every tensor aligned to its size
    return [(name, dtype, shape, data.tobytes()) for _, name, dtype, shape, data in found]


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of `network`, its merged convolutions brought up to date.

    spandrel's SPAN keeps each merged kernel beside its branches and refreshes it in every forward
    pass in eval mode; straight after training it still is the one of an earlier step.
    """
    for module in network.modules():
        if is_merging_convolution(module):
            module.update_params()  # type: ignore[operator]
    return dict(network.state_dict())


def running_parameters(network: nn.Module) -> int:
    """Number of parameters that run: of a merging convolution the merged kernel, no branches."""
    idle: set[nn.Parameter] = set()
    for module in network.modules():
        if is_merging_convolution(module):
            merged: nn.Module = module.eval_conv  # type: ignore[assignment]
            idle |= set(module.parameters()) - set(merged.parameters())
    return sum(p.numel() for p in network.parameters() if p not in idle)


def is_merging_convolution(module: nn.Module) -> bool:
    """Whether `module` is a convolution of SPAN that merges its branches in every forward pass."""
    return hasattr(module, "eval_conv") and callable(getattr(module, "update_params", None))
