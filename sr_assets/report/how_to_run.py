"""How to run a release, for its model card: this tool, spandrel, chaiNNer and ONNX Runtime.

The rest of the card is `model_card.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sr_assets.report.model_card import CardFacts


def how_to_run(facts: CardFacts, version: str) -> str:
    """Commands and code for this tool, spandrel, chaiNNer and ONNX Runtime, as markdown.

    Args:
        facts: of the card.
        version: of the release; without one, or without a repository, nothing is pulled.
    """
    d = facts.description
    # The shortest names: fp32, without the suffix of a smaller one.
    weights = min((name for name in facts.files if name.endswith(".safetensors")), key=len)
    graphs = sorted((n for n in facts.files if n.endswith(".onnx")), key=lambda n: "fp32" not in n)
    graph = graphs[0] if graphs else None
    size = "[1, 3, H, W] in [0, 1], RGB"
    if d["experts"]:
        code, said, feed = _how_fusion(d, weights, size)
    else:
        ours = not facts.plain_spandrel
        code = (
            ("import sr_models\n" if ours else "")
            + "from spandrel import ModelLoader\n\n"
            + ("sr_models.register()\n" if ours else "")
            + f'model = ModelLoader().load_from_file("{weights}")\n'
            f"sr = model(lr)  # lr: float32 tensor {size}\n"
        )
        said = "With spandrel" + (" and this package:" if ours else ":")
        feed = '{"input": lr}'
    shell = f"srd upscale {weights} photos/ photos-x{d['scale']}/\n"
    if facts.hub and version:
        shell = f"srd pull {facts.hub}@v{version} --to .\n{shell}"
    parts = ["With this tool, in the folder of the files:", f"```sh\n{shell}```"]
    parts += [said, f"```python\n{code}```", _chainner(facts, weights, graph)]
    if graph:
        parts.append(f"With onnxruntime, on a float32 array {size}:")
        parts.append(
            "```python\nimport onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{graph}")\n'
            f'(sr,) = session.run(["output"], {feed})\n```'
        )
        parts.append(_limits(facts.onnx or {}))
    elif facts.onnx and "error" in facts.onnx:
        parts.append(f"There is no ONNX file: {facts.onnx['error']}.")
    return "\n\n".join(parts)


def _how_fusion(d: Mapping[str, Any], weights: str, size: str) -> tuple[str, str, str]:
    """Python code, what stands above it, and what a session is fed."""
    features = list(d["args"].get("features") or {})
    pictures = ", ".join(f'"{e}": {e}_sr' for e in d["experts"])
    maps = ", ".join(f'"{e}": {e}_features' for e in features)
    given = f"lr, {{{pictures}}}" + (f", {{{maps}}}" if features else "")
    arguments = "".join(f"    {k!r}: {v!r},\n" for k, v in d["args"].items())
    network = f'"{d["architecture"]}", {d["experts"]!r}, {d["scale"]}, args'
    code = (
        "from safetensors.torch import load_file\n"
        "from sr_models.fusion.build import build_fusion\n\n"
        f"args = {{\n{arguments}}}\n"
        f"model = build_fusion({network}).eval()\n"
        f'model.load_state_dict(load_file("{weights}"))\n'
        f"sr = model({given})  # lr: {size}\n"
    )
    said = "It needs the pictures of its experts"
    if features:
        said += " and features [1, C, H, W] of " + ", ".join(features)
    feed = f'{{"lr": lr, {pictures}' + "".join(f', "{e}_features": {e}_features' for e in features)
    return code, f"{said}; `srd upscale` runs them by itself.", feed + "}"


def _limits(onnx: Mapping[str, Any]) -> str:
    multiple = onnx.get("multiple", 1)
    sides = (
        "Any height and width will do"
        if multiple == 1
        else f"Pad height and width to a multiple of {multiple} and crop the output"
    )
    batch = "any batch" if onnx.get("free_batch", True) else "a batch of 1"
    return f"{sides}; {batch}. Nothing is clamped: clip to [0, 1] before you round to 8 bits."


def _chainner(facts: CardFacts, weights: str, graph: str | None) -> str:
    """What to load in chaiNNer, which reads PyTorch files through spandrel, and ONNX."""
    if facts.description["experts"]:
        return "chaiNNer runs networks of one input alone: this one needs its experts' pictures."
    if facts.plain_spandrel:
        return f"In chaiNNer: PyTorch, Load Model, `{weights}`; then Upscale Image."
    if graph:
        return f"In chaiNNer: ONNX, Load Model, `{graph}`; then Upscale Image."
    return "chaiNNer does not know this architecture, and there is no ONNX file to load instead."
