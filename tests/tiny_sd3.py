"""A pipeline of the shape of Stable Diffusion 3 that fits in a test: random weights on disk.

In diffusers' own format, with adapters and prompt embeddings as the user would put them there.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

#: Tokens and width of the prompt, and width of the pooled one.
TOKENS, WIDTH, POOLED = 7, 32, 16
RANK = 4


def write_weights(folder: Path, strength: float = 0.02) -> Path:
    """Everything that a refinement of one step needs, and the teacher's adapter.

    Args:
        folder: is made.
        strength: standard deviation of the adapters' halves.
    """
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8,
            num_attention_heads=4, joint_attention_dim=WIDTH, caption_projection_dim=32,
            pooled_projection_dim=POOLED, out_channels=16, pos_embed_max_size=16,
        )  # fmt: skip
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=16,
            norm_num_groups=4, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
            use_post_quant_conv=False,
        )  # fmt: skip
        for network in (transformer, vae):
            network.eval()
        transformer.save_pretrained(folder / "transformer")
        vae.save_pretrained(folder / "vae")
        lora, prompts = folder / "lora", folder / "prompts"
        lora.mkdir()
        prompts.mkdir()
        for name in ("transformer", "teacher"):
            ends = ("to_q", "proj_out")
            layers = {n: m for n, m in transformer.named_modules() if n.endswith(ends)}
            save_file(adapters(layers, "transformer.", strength), lora / f"{name}.safetensors")
        layers = {n: m for n, m in vae.named_modules() if n.startswith("encoder.") and "conv" in n}
        save_file(adapters(layers, "", strength), lora / "vae.safetensors")
        torch.save(torch.randn(TOKENS, WIDTH), prompts / "prompt_embeds.pt")
        torch.save(torch.randn(1, POOLED), prompts / "pool_embeds.pt")
    return folder


def adapters(layers: dict[str, nn.Module], prefix: str, strength: float) -> dict[str, Tensor]:
    """Random halves of an adapter for each linear or convolution layer among `layers`."""
    found: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        outputs, *rest = layer.weight.shape
        one = (1,) * len(rest[1:])
        found[f"{prefix}{name}.lora_A.weight"] = strength * torch.randn(RANK, *rest)
        found[f"{prefix}{name}.lora_B.weight"] = strength * torch.randn(outputs, RANK, *one)
    return found


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """A soft picture [1, 3, height, width] in [0, 1], with some detail."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand((1, 3, height // 8 + 2, width // 8 + 2), generator=generator)
    soft = nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)
    noise = torch.rand((1, 3, height, width), generator=generator)
    return 0.05 + 0.85 * soft + 0.1 * noise
