"""The files that a refinement needs: where each lies in a folder, and whose it is.

They are the user's: nothing is ever downloaded here, and what is missing is told in one line.
Reading them is `loading.py`.
"""

from __future__ import annotations

from pathlib import Path

BASE = (
    "transformer/ and vae/ of stabilityai/stable-diffusion-3-medium-diffusers on the Hugging Face "
    "hub (gated: log in and accept the Stability AI Community License)"
)
_LORA = "lora/ and prompts/ of TSD-SR (github.com/Microtreei/TSD-SR, Apache 2.0)"


class PerceptualFilesError(ValueError):
    """A file or package of the refinement is missing or wrong; one line names it and the mend."""


def adapter_file(steps: int) -> str:
    """Path of the transformer's adapter; of more than one step it is the teacher's."""
    return f"lora/{'transformer' if steps == 1 else 'teacher'}.safetensors"


def needed_files(steps: int) -> tuple[str, ...]:
    """Paths and patterns in the folder of weights."""
    return (
        "transformer/config.json",
        "transformer/*.safetensors",
        "vae/config.json",
        "vae/*.safetensors",
        adapter_file(steps),
        "lora/vae.safetensors",
        "prompts/prompt_embeds.pt",
        "prompts/pool_embeds.pt",
    )


def found_files(folder: Path, steps: int) -> list[Path]:
    """Every file that is read, in a fixed order.

    Raises:
        PerceptualFilesError: one is not there.
    """
    found = {name: sorted(folder.glob(name)) for name in needed_files(steps)}
    if missing := [name for name, files in found.items() if not files]:
        raise PerceptualFilesError(
            f"perceptual refinement needs {', '.join(missing)} in {folder}: put there {BASE}, and "
            f"{_LORA}; docs/perceptual.md"
        )
    return [file for files in found.values() for file in files]
