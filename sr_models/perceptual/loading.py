"""The networks of a refinement read from their files, with the adapters merged into them.

Where the files lie is `folder.py`, what the networks do together is `pipeline.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sr_models.perceptual.folder import (
    BASE,
    PerceptualFilesError,
    adapter_file,
    found_files,
)
from sr_models.perceptual.lora import merge_lora

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SD3Transformer2DModel

#: Channels of a latent of Stable Diffusion 3; earlier models have 4.
LATENT_CHANNELS = 16


@dataclass(frozen=True)
class Networks:
    """What the files hold, on the CPU and in evaluation mode."""

    transformer: SD3Transformer2DModel
    vae: AutoencoderKL
    prompt: Tensor
    """[1, tokens, joint_attention_dim]."""
    pooled: Tensor
    """[1, pooled_projection_dim]."""


def read_networks(folder: Path, steps: int, dtype: torch.dtype) -> Networks:
    """The transformer and the VAE with their adapters merged, and the prompt that belongs to them.

    Args:
        folder: with the files of `needed_files`, the first two in diffusers' own format.
        steps: of the refinement; 1 takes `lora/transformer.safetensors`, more
            `lora/teacher.safetensors`.
        dtype: of the weights.

    Raises:
        PerceptualFilesError: a file or diffusers is missing, or files do not fit one another.
    """
    found_files(folder, steps)
    try:
        from diffusers import AutoencoderKL, SD3Transformer2DModel
    except ImportError as error:
        raise PerceptualFilesError(
            "perceptual refinement needs diffusers: pip install 'sr-distillery[diffusion]'"
        ) from error
    networks = []
    for kind, part in ((SD3Transformer2DModel, "transformer"), (AutoencoderKL, "vae")):
        try:
            network = kind.from_pretrained(
                folder / part, torch_dtype=dtype, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise PerceptualFilesError(
                f"{folder / part} cannot be read as {kind.__name__} ({reason}): fetch it again"
            ) from error
        networks.append(network.eval().requires_grad_(False))
    transformer, vae = networks
    _check_latents(folder, transformer, vae)
    _merge(folder / adapter_file(steps), transformer)
    _merge(folder / "lora/vae.safetensors", vae)
    return Networks(
        transformer,
        vae,
        _embedding(folder / "prompts/prompt_embeds.pt", transformer.config.joint_attention_dim),
        _embedding(folder / "prompts/pool_embeds.pt", transformer.config.pooled_projection_dim)[0],
    )


def _check_latents(folder: Path, transformer: SD3Transformer2DModel, vae: AutoencoderKL) -> None:
    channels = (vae.config.latent_channels, transformer.config.in_channels)
    if channels != (LATENT_CHANNELS, LATENT_CHANNELS):
        raise PerceptualFilesError(
            f"{folder}: vae/ makes latents of {channels[0]} channels and transformer/ takes "
            f"{channels[1]}, but those of Stable Diffusion 3 have {LATENT_CHANNELS}: put {BASE}"
        )


def _merge(file: Path, network: SD3Transformer2DModel | AutoencoderKL) -> None:
    try:
        merge_lora(network, load_file(file))
    except (ValueError, OSError, SafetensorError) as error:
        raise PerceptualFilesError(
            f"{file} is no adapter of {file.parents[1]}: {error}: fetch it again"
        ) from error


def _embedding(file: Path, width: int) -> Tensor:
    """[1, n, width] of a file that holds one tensor; any leading dimensions of size 1."""
    try:
        tensor = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in as many ways as there are readers
        reason = str(error).strip().partition("\n")[0]
        raise PerceptualFilesError(f"{file} cannot be read ({reason}): fetch it again") from error
    if not isinstance(tensor, Tensor) or not tensor.numel() or tensor.shape[-1] != width:
        what = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise PerceptualFilesError(
            f"{file} holds {what}, but transformer/ takes embeddings [..., {width}]: fetch it again"
        )
    return tensor.float().reshape(1, -1, width)
