"""An ONNX graph for TensorRT with the profile of sizes it brings along, and that profile as JSON.

Building an engine of it is `srd build-engine`, on the machine that runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sr_assets.assets.exporting.onnx_files import BACKEND, graph_runner, half_graph
from sr_assets.assets.exporting.subject import Made, Refused, Subject

_BACKEND = f"{BACKEND}, not on TensorRT"


def make_tensorrt(subject: Subject) -> Iterator[Made | Refused]:
    """The fp16 graph with its profile, linted; none of a fusion.

    Raises:
        StageError: a package is missing.
    """
    from sr_models.export.parity import Gate
    from sr_models.export.tensorrt import default_profile, lint, profile_json, with_profile

    if subject.model.experts:
        return
    file = subject.file("onnx", "trt-fp16")
    made = half_graph(subject, file)
    if isinstance(made, Refused):
        yield made
        return
    profile = default_profile(subject.model.sizes[1], bool(made.facts["onnx"]["free_batch"]))
    content = with_profile(made.content, profile)
    found = lint(content)
    if found:
        yield Refused(file, "; ".join(found))
        return
    yield replace(made, content=content, backend=_BACKEND, run=graph_runner(subject, content))
    yield Made(
        subject.file("json", "trt-profile"),
        profile_json(profile).encode() + b"\n",
        "JSON",
        "fp16",
        "nothing to run",
        None,
        Gate(),
    )
