"""The section `export:` of a recipe: which files a trained model becomes.

Making them is `assets/export.py`; their names and gates are told in docs/export.md.
"""

from __future__ import annotations

from pydantic import Field

from sr_assets.recipe.strict import Strict


class Export(Strict):
    """Files that an export writes, beside the fp32 weights as safetensors."""

    onnx: bool = Field(True, description="ONNX fp32 with dynamic batch, height and width.")
    fp16: bool = Field(
        True, description="Weights in fp16 and, with `onnx`, ONNX in fp16; that not of fusions."
    )
    pth: bool = Field(True, description="Weights as `.pth` under `params`, for older programs.")
    int8: bool = Field(
        False,
        description="ONNX with int8 weights and activations, one file for CPUs and one for "
        "TensorRT; not of fusions.",
    )
    video: bool = Field(
        False, description="Of a network with a video mode, also ONNX fp32 of one frame's step."
    )
    whole: bool = Field(
        False, description="Of a fusion, also ONNX fp32 that holds its experts; may take minutes."
    )
    coreml: bool = Field(False, description="CoreML package in fp16, zipped; not of fusions.")
    tensorrt: bool = Field(
        False, description="ONNX for TensorRT with a profile of sizes; not of fusions."
    )
