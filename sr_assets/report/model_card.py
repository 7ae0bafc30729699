"""The model card of a release: what it is, from what, how good beside its controls, how to run it.

It is a pure function of its facts; deciding on the release is `assets/release.py`, its front matter
`front_matter.py`, and how it is run `how_to_run.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sr_assets.report.front_matter import convention, front_matter
from sr_assets.report.how_to_run import how_to_run
from sr_assets.report.markdown import table

_KINDS = {
    "gate": "A fusion: per-pixel weights over frozen experts, and a small residual.",
    "fusion": "A fusion: seven phases, guided by the frequencies of LR, over frozen experts.",
    "student": "A fast network, trained on HR and on its teachers' pictures.",
    "plain": "A network trained on pairs of LR and HR alone.",
}


@dataclass(frozen=True)
class Picture:
    """One strip: LR, bicubic, the model and HR of the same square."""

    file: str
    """Path inside the release."""
    benchmark: str
    image: str
    gain: float
    """PSNR-Y over bicubic on the whole image (dB)."""
    licence: str | None
    """Of the benchmark; None for photos that ship with scikit-image."""

    @property
    def caption(self) -> str:
        """What it shows, in one line."""
        licence = self.licence or "photos of scikit-image"
        return f"{self.benchmark}/{self.image}: {self.gain:+.2f} dB over bicubic ({licence})"


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
    plain_spandrel: bool = False
    """Whether spandrel loads it without this project."""
    pictures: Sequence[Picture] = ()
    author: str | None = None
    hub: str | None = None
    """Repository on the hub, where the recipe names one."""
    hub_data: Sequence[str] = ()
    """Training datasets that are repositories of the hub."""
    base_models: Sequence[str] = ()
    """Repositories of the hub that experts behind it come from."""
    hub_benchmarks: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Benchmark -> repository of the hub that it comes from, and revision."""
    other_lr: Mapping[str, str] = field(default_factory=dict)
    """Benchmark whose LR is not made by bicubic reduction -> what LR it has."""
    iterations: int | None = None
    batch_size: int | None = None
    hr_size: int | None = None
    """Side of a training patch (HR px)."""
    degraded: bool = False
    """Whether its LR had more than bicubic reduction done to it."""
    online: bool = False
    """Whether degradations were drawn while it trained."""

    @property
    def summary(self) -> str:
        """What kind of model it is, in one sentence."""
        return _KINDS[self.description["kind"]]


def render_card(facts: CardFacts, version: str = "") -> str:
    """The card as markdown with the hub's front matter, the same bytes for the same facts.

    Args:
        facts: all that it says.
        version: of the release; empty for a card that was not released.
    """
    d = facts.description
    parts = [
        f"{front_matter(facts)}# {d['model']} ×{d['scale']}",
        facts.summary,
        table(
            ("", ""),
            [
                *([("version", version)] if version else []),
                *([("author", _cell(facts.author))] if facts.author else []),
                ("architecture", _cell(d["architecture"])),
                ("arguments", _cell(_arguments(d["args"]) or "defaults")),
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
        f"{convention(facts)}.",
        _scores(facts, d["model"]),
        "Release checks:",
        "\n".join(
            f"- {c['name']}: {'passed' if c['passed'] else 'failed'}, {c['reason']}"
            for c in facts.checks
        ),
        *(_strip(picture) for picture in facts.pictures),
        "## Training data",
        table(("dataset", "licence"), [(n, _licence(text)) for n, text in facts.data.items()]),
    ]
    if facts.experts:
        rows = [
            (name, _licence(text), facts.expert_weights[name][:16])
            for name, text in facts.experts.items()
        ]
        parts += ["Experts:", table(("expert", "licence of its weights", "sha256"), rows)]
    parts += ["## How to run it", how_to_run(facts, version), "## Files"]
    rows = [(n, f"{f['size']:,}", f["sha256"]) for n, f in facts.files.items()]
    parts.append(table(("file", "bytes", "sha256"), rows))
    parts += ["Made from:", table(("input", "data version"), list(facts.versions.items()))]
    return "\n\n".join(parts) + "\n"


def _strip(picture: Picture) -> str:
    return f"LR, bicubic, this model, HR; {picture.caption}:\n\n![]({picture.file})"


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
    return _cell(text or "not stated in the recipe")


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


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
    return table(("", *(f"{b}: PSNR-Y / SSIM-Y" for b in benchmarks)), rows)


def _rounded(d: Mapping[str, Any]) -> bool:
    return bool(d.get("quantisation_aware"))


def _score(score: Mapping[str, Any]) -> str:
    psnr = "identical" if score["psnr_y"] is None else f"{score['psnr_y']:.2f} dB"
    return f"{psnr} / {score['ssim_y']:.4f}"
