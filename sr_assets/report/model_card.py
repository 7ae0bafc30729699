"""The model card of a release: what it is, from what, how good beside its controls, how to run it.

It is a pure function of its facts; deciding on the release is `assets/release.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sr_models.registry import modules_of

_KINDS = {
    "gate": "A fusion: per-pixel weights over frozen experts, and a small residual.",
    "fusion": "A fusion: seven phases, guided by the frequencies of LR, over frozen experts.",
    "student": "A fast network, trained on HR and on its teachers' pictures.",
    "plain": "A network trained on pairs of LR and HR alone.",
}


@dataclass(frozen=True)
class CardFacts:
    """Everything that a model card says."""

    description: Mapping[str, Any]
    """`description.json` of the export."""
    files: Mapping[str, Mapping[str, Any]]
    """File name -> {"sha256", "size"}."""
    onnx: Mapping[str, Any] | None
    """The export's report on its graph, `{"error": reason}`, or None when none was asked for."""
    data: Mapping[str, str | None]
    """Dataset that the model or one of its teachers was trained on -> licence."""
    experts: Mapping[str, str | None]
    """Expert that the model runs on, or learnt from -> licence."""
    expert_weights: Mapping[str, str]
    """The same experts -> sha256 of their weights."""
    teachers: Mapping[str, tuple[int, str | None]]
    """What it learnt from, the teachers of those, and so on -> students in between, licence."""
    versions: Mapping[str, str]
    """What it was trained from: asset -> data version."""
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Row of the table -> benchmark -> mean score; the model's own row is the last."""
    checks: Sequence[Mapping[str, Any]]
    """Outcomes of the release checks: {"name", "passed", "reason"}."""


def render_card(facts: CardFacts) -> str:
    """The card as markdown, the same bytes for the same facts."""
    d = facts.description
    parts = [
        f"# {d['model']} ×{d['scale']}",
        _KINDS[d["kind"]],
        _table(
            ("", ""),
            [
                ("architecture", d["architecture"]),
                ("arguments", _arguments(d["args"]) or "defaults"),
                ("scale", f"×{d['scale']}"),
                ("parameters", f"{d['parameters']:,}"),
                ("licence of the weights", _licence(d["licence"])),
                *(
                    (f"teacher{' of a teacher' * above}", f"{name}, licence {_licence(text)}")
                    for name, (above, text) in facts.teachers.items()
                ),
                *([("trained for", "int8 weights and activations")] if _rounded(d) else []),
                *([("experts it runs on", ", ".join(d["experts"]))] if d["experts"] else []),
                *([("features it takes", _features(d))] if _features(d) else []),
            ],
        ),
        "## Quality",
        "LR by MATLAB-compatible bicubic reduction; SR rounded to 8 bits; luma of BT.601; a border "
        f"of {d['scale']} px left out; mean over the images that no row meets exactly.",
        _scores(facts, d["model"]),
        "Release checks:",
        "\n".join(
            f"- {c['name']}: {'passed' if c['passed'] else 'failed'}, {c['reason']}"
            for c in facts.checks
        ),
        "## Training data",
        _table(("dataset", "licence"), [(n, _licence(text)) for n, text in facts.data.items()]),
    ]
    if facts.experts:
        rows = [
            (name, _licence(text), facts.expert_weights[name][:16])
            for name, text in facts.experts.items()
        ]
        parts += ["Experts:", _table(("expert", "licence of its weights", "sha256"), rows)]
    parts += ["## How to run it", _how(facts), "## Files"]
    rows = [(n, f"{f['size']:,}", f["sha256"]) for n, f in facts.files.items()]
    parts.append(_table(("file", "bytes", "sha256"), rows))
    parts += ["Made from:", _table(("input", "data version"), list(facts.versions.items()))]
    return "\n\n".join(parts) + "\n"


def _arguments(args: Mapping[str, Any]) -> str:
    """All but the features, which have a line of their own."""
    return ", ".join(f"{k} {v}" for k, v in args.items() if k != "features")


def _features(description: Mapping[str, Any]) -> str:
    """Channels and module of the features of each expert that has some; empty without any."""
    taps, features = description.get("taps", {}), description["args"].get("features") or {}
    return ", ".join(
        f"{features[expert]} channels of {expert}"
        + (f" ({taps[expert]})" if expert in taps else "")
        for expert in description["experts"]
        if expert in features
    )


def _licence(text: str | None) -> str:
    return text or "not stated in the recipe"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _scores(facts: CardFacts, own: str) -> str:
    benchmarks = list(dict.fromkeys(b for scores in facts.rows.values() for b in scores))
    if not benchmarks:
        return "Not measured: the recipe has no benchmark."
    rows = []
    for name, scores in facts.rows.items():
        cells = []
        for benchmark in benchmarks:
            score = scores.get(benchmark)
            cells.append("" if score is None else _score(score))
        shown = f"**{name}**" if name == own else name
        rows.append((shown, *cells))
    return _table(("", *(f"{b}: PSNR-Y / SSIM-Y" for b in benchmarks)), rows)


def _rounded(d: Mapping[str, Any]) -> bool:
    return bool(d.get("quantisation_aware"))


def _score(score: Mapping[str, Any]) -> str:
    psnr = "identical" if score["psnr_y"] is None else f"{score['psnr_y']:.2f} dB"
    return f"{psnr} / {score['ssim_y']:.4f}"


def _how(facts: CardFacts) -> str:
    d = facts.description
    weights = next(name for name in facts.files if name.endswith(".safetensors"))
    graph = next((name for name in facts.files if name.endswith(".onnx")), None)
    size = "[1, 3, H, W] in [0, 1], RGB"
    if d["experts"]:
        code, said, feed = _how_fusion(d, weights, size)
    else:
        ours = d["architecture"] == "EDSR" or bool(modules_of(d["architecture"], {}))
        code = (
            ("import sr_models\n" if ours else "")
            + "from spandrel import ModelLoader\n\n"
            + ("sr_models.register()\n" if ours else "")
            + f'model = ModelLoader().load_from_file("{weights}")\n'
            f"sr = model(lr)  # lr: float32 tensor {size}\n"
        )
        said = "With spandrel" + (" and this package:" if ours else ":")
        feed = '{"input": lr}'
    parts = [said, f"```python\n{code}```"]
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
