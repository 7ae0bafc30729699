"""The files of a trained model: `model.safetensors`, `model.json` that says how to rebuild it, and
`checkpoints/` with weights of other steps.

Building the network they belong to is `sr_assets/assets/trained.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_assets.output_folder import OutputFolder
from sr_assets.storage import Output

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS, DESCRIPTION, CHECKPOINTS = "model.safetensors", "model.json", "checkpoints"


def write_model(folder: OutputFolder, network: nn.Module, description: Mapping[str, Any]) -> None:
    """Writes the weights of `network` as fp32, the same bytes every time, and the description.

    Args:
        folder: where to write.
        network: on any device; SPAN's merged kernels are brought up to date in place.
        description: JSON values, at least kind, architecture, args, scale and experts.
    """
    from sr_models.export.weights import merged_state, serialise_weights

    names = ("architecture", "scale", "kind")
    metadata = {name: str(description[name]) for name in names}
    folder.write_bytes(WEIGHTS, serialise_weights(merged_state(network), metadata))
    folder.write_json(DESCRIPTION, description)


def write_checkpoints(folder: OutputFolder, source: Path, names: Iterable[str]) -> None:
    """Puts weights of a run, files `names` in `source`, into `checkpoints/` of its output.

    Kept are the averaged weights of the steps of best validation PSNR-Y and of the milestones, for
    people to compare or to fine-tune from; states to resume from stay in the work folder and go
    with it. None of them is content: how many are kept does not change what the model is.
    """
    for name in names:
        folder.take(source / name, f"{CHECKPOINTS}/{name}", content=False)


def read_description(output: Output) -> dict[str, Any]:
    """What `model.json` of a checkpoint output says."""
    return output.read_json(DESCRIPTION)


def read_state(output: Output) -> dict[str, Tensor]:
    """The weights of a checkpoint output: name -> tensor on the CPU."""
    from safetensors.torch import load

    return load(output.read_bytes(WEIGHTS))
