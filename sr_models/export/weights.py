"""Bare state dicts as safetensors files: fp32, string metadata, the same bytes every time.

Which models are exported and where the files go is not known here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

_NAMES = {
    torch.float32: "F32",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PROBE_SEED = 20250


@dataclass(frozen=True)
class SpandrelReport:
    """What spandrel made of a weights file."""

    architecture: str
    scale: int
    parameters: int
    shape: tuple[int, int, int, int]
    """Of the input that both networks were given."""
    max_difference: float
    """Largest |SR of the network - SR of the file|."""


def serialise_weights(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file: floating tensors as fp32, integers and booleans as they are.

    The library's own writer puts metadata in the order of a randomly seeded hash table; here names
    are sorted, so equal tensors and metadata give equal bytes.

    Raises:
        ValueError: a tensor has a dtype that such a file cannot hold.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    blocks: list[bytes] = []
    offset = 0
    for name, dtype, shape, block in _entries(state):
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


def digest_weights(state: Mapping[str, Tensor]) -> str:
    """sha256 of names, dtypes, shapes and values as `serialise_weights` would store them."""
    digest = hashlib.sha256()
    for name, dtype, shape, block in _entries(state):
        digest.update(f"{name} {dtype} {shape} ".encode())
        digest.update(block)
    return digest.hexdigest()


def _entries(state: Mapping[str, Tensor]) -> list[tuple[str, str, list[int], bytes]]:
    """(name, dtype, shape, little-endian bytes) of every tensor; the widest dtypes come first."""
    found = []
    for name, tensor in sorted(state.items()):
        value = tensor.detach().cpu()
        if value.is_floating_point():
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


def is_merging_convolution(module: nn.Module) -> bool:
    """Whether `module` is a convolution of SPAN that merges its branches in every forward pass."""
    return hasattr(module, "eval_conv") and callable(getattr(module, "update_params", None))


def check_with_spandrel(path: Path, network: nn.Module) -> SpandrelReport:
    """Loads `path` as a stranger would, through spandrel, and compares it with `network`.

    Both see the same random LR [1, 3, side, side] in [0, 1], in fp32; nothing is clamped.

    Raises:
        ValueError: spandrel does not know the file, or takes it for no super-resolution network.
    """
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError

    from sr_models.experts import edsr

    edsr.register()
    try:
        found = ModelLoader(device="cpu").load_from_file(path)
    except UnsupportedModelError as error:
        raise ValueError(f"{path.name}: spandrel does not know this architecture") from error
    if not isinstance(found, ImageModelDescriptor):
        raise ValueError(
            f"{path.name}: spandrel takes it for {found.architecture.name}, not for SR"
        )
    needs = found.size_requirements
    step = max(needs.multiple_of, 1)
    side = -(-max(24, needs.minimum) // step) * step
    lr = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(_PROBE_SEED))
    training, device = network.training, next(network.parameters()).device
    with torch.no_grad():  # what SPAN merges in this pass stays an ordinary tensor
        expected = network.eval()(lr.to(device)).cpu()
        actual = found.model.eval()(lr)
    network.train(training)
    if actual.shape != expected.shape:
        raise ValueError(
            f"{path.name}: spandrel's {found.architecture.name} gives {tuple(actual.shape)}, "
            f"the network gives {tuple(expected.shape)}"
        )
    return SpandrelReport(
        architecture=str(found.architecture.id),
        scale=found.scale,
        parameters=sum(p.numel() for p in found.model.parameters()),
        shape=(1, 3, side, side),
        max_difference=float((actual - expected).abs().max()),
    )
