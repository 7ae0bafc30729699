"""ONNX graphs for TensorRT: the sizes an engine is built for, a lint, and building it.

The graph carries its precision; TensorRT 11 takes no other word for it. Making graphs is `onnx.py`
and `int8/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_models.one_line import one_line

#: Name of the string property of a graph that holds its profile as JSON.
PROPERTY = "tensorrt_profile"

_OPSETS = range(9, 26)  # that TensorRT 11 reads
_UNSUPPORTED = frozenset({"DFT", "STFT"})  # before TensorRT 11.2
_SIDES = (64, 256, 1024)  # of LR: smallest, usual, largest (px)
_BATCHES = (1, 1, 4)
_WORKSPACE = 1 << 30  # bytes that TensorRT may use while it runs
_LEAKS = re.compile(rb"site-packages|/home/|/root/|/Users/|[A-Za-z]:\\\\|\.py\b")


class TensorRTError(Exception):
    """An engine cannot be built here; the message says what is missing or wrong."""


@dataclass(frozen=True)
class Shapes:
    """Shapes [B, C, H, W] that an engine takes at one input."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    """What it is fastest at."""
    largest: tuple[int, ...]


#: Input -> shapes.
Profile = dict[str, Shapes]


def default_profile(multiple: int, free_batch: bool, name: str = "input") -> Profile:
    """LR sides 64 to 1024 px, fastest at 256, and batches 1 to 4, on multiples of `multiple`."""
    batches = _BATCHES if free_batch else (1, 1, 1)
    sides = [-(-side // multiple) * multiple for side in _SIDES]
    shapes = [(b, 3, side, side) for b, side in zip(batches, sides, strict=True)]
    return {name: Shapes(*shapes)}


def profile_json(profile: Profile) -> str:
    """{input: {"min": [B, C, H, W], "opt": ..., "max": ...}}, TensorRT's own words."""
    told = {
        name: {"min": s.smallest, "opt": s.usual, "max": s.largest} for name, s in profile.items()
    }
    return json.dumps(told, sort_keys=True)


def read_profile(text: str) -> Profile:
    """What `profile_json` wrote.

    Raises:
        ValueError: it is no such text, or its shapes do not follow one another.
    """
    try:
        profile = {
            str(name): Shapes(*(tuple(int(n) for n in s[key]) for key in ("min", "opt", "max")))
            for name, s in json.loads(text).items()
        }
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"no profile of shapes ({error}): write "
            '{"input": {"min": [1, 3, 64, 64], "opt": [...], "max": [...]}}'
        ) from error
    for name, s in profile.items():
        if len({len(s.smallest), len(s.usual), len(s.largest)}) != 1 or any(
            not 0 < low <= usual <= high
            for low, usual, high in zip(s.smallest, s.usual, s.largest, strict=True)
        ):
            raise ValueError(f"profile of {name}: min, opt and max must not fall: {s}")
    return profile


def lint(content: bytes) -> tuple[str, ...]:
    """What of a graph TensorRT would not take, or people should not be given; empty when clean.

    Looked at are the checker of ONNX, the opset, TensorRT's rules for QDQ (int8 with zero point 0,
    constant positive scales, weights per output channel, no quantised bias), operators that it
    lacks, and paths of the machine that exported.

    Args:
        content: an ONNX file without external data.
    """
    import onnx

    try:
        onnx.checker.check_model(content, full_check=True)
        model = onnx.load_from_string(content)
    except Exception as error:  # a decoder's, the checker's or shape inference's
        line = one_line(error)
        return (f"the ONNX checker refuses it: {line}",)
    return tuple(dict.fromkeys([*_about_form(model), *_about_qdq(model), *_about_leaks(content)]))


def build_engine(source: Path, target: Path, profile: Profile | None = None) -> Profile:
    """Builds the engine of an ONNX file for the GPU of this machine, and writes it.

    Args:
        source: the ONNX file.
        target: file for the engine; it runs on this kind of GPU and this TensorRT alone.
        profile: shapes; those that the file brings along when left out, else the usual ones.

    Returns:
        The profile it was built with.

    Raises:
        TensorRTError: TensorRT or a GPU is missing, the lint finds something, or it fails.
        ValueError: the file's profile is damaged.
    """
    content = source.read_bytes()
    found = lint(content)
    if found:
        raise TensorRTError(f"{source.name}: {found[0]}")
    chosen = profile or profile_of(content)
    trt = _tensorrt(source)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # From TensorRT 11 on every network is strongly typed, and there is no such flag.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(content):
        reasons = "; ".join(str(parser.get_error(n)) for n in range(parser.num_errors))
        raise TensorRTError(f"TensorRT does not read {source.name}: {reasons}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE)
    shapes = builder.create_optimization_profile()
    for name, s in chosen.items():
        shapes.set_shape(name, s.smallest, s.usual, s.largest)
    config.add_optimization_profile(shapes)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise TensorRTError(f"TensorRT builds no engine of {source.name}: its log above says why")
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_bytes(bytes(engine))
    temporary.replace(target)
    return chosen


def profile_of(content: bytes) -> Profile:
    """The profile that a graph brings along, else the usual one for what it says of its sizes.

    Raises:
        ValueError: the profile that it brings along is damaged.
    """
    import onnx

    model = onnx.load_from_string(content)
    told = {entry.key: entry.value for entry in model.metadata_props}
    if PROPERTY in told:
        return read_profile(told[PROPERTY])
    inputs = [i.name for i in model.graph.input]
    if len(inputs) != 1:
        raise ValueError(f"the graph has inputs {', '.join(inputs)}: give a profile")
    return default_profile(int(told.get("multiple", 1)), told.get("batch") != "1", inputs[0])


def with_profile(content: bytes, profile: Profile) -> bytes:
    """The same graph, bringing `profile` along."""
    import onnx

    model = onnx.load_from_string(content)
    told = {entry.key: entry.value for entry in model.metadata_props}
    told[PROPERTY] = profile_json(profile)
    del model.metadata_props[:]
    for key, value in sorted(told.items()):
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString(deterministic=True)


def _tensorrt(source: Path) -> Any:
    mend = (
        f"build {source.name} on the machine with the NVIDIA GPU that will run it, where "
        "`python -c 'import tensorrt'` works (pip install tensorrt)"
    )
    try:
        import tensorrt
    except ImportError as error:
        raise TensorRTError(f"TensorRT is not installed here: {mend}") from error
    import torch

    if not torch.cuda.is_available():
        raise TensorRTError(f"there is no NVIDIA GPU here: {mend}")
    return tensorrt


def _about_form(model: Any) -> Iterator[str]:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset not in _OPSETS:
        yield f"opset {opset} is not among {_OPSETS.start} to {_OPSETS.stop - 1}"
    for domain in {o.domain for o in model.opset_import} - {"", "ai.onnx"}:
        if any(node.domain == domain for node in model.graph.node):
            yield f"nodes of domain {domain} are unknown to TensorRT"
    for kind in sorted({node.op_type for node in model.graph.node} & _UNSUPPORTED):
        yield f"{kind} is unknown to TensorRT before 11.2: write it as a matrix product"
    for value in (*model.graph.input, *model.graph.output):
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if not size.dim_param and not size.dim_value:
                yield f"axis {axis} of {value.name} has neither a size nor a name"


def _about_qdq(model: Any) -> Iterator[str]:
    from onnx import TensorProto, numpy_helper

    constants = {t.name: t for t in model.graph.initializer}
    readers: dict[str, list[tuple[Any, int]]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, place))
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = constants.get(node.input[1])
        if scale is None:
            yield f"{node.name}: its scale is no constant"
        elif not (numpy_helper.to_array(scale) > 0).all():
            yield f"{node.name}: a scale is not above 0"
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None:
            yield f"{node.name}: without a zero point it means uint8"
        elif zero.data_type != TensorProto.INT8:
            kind = TensorProto.DataType.Name(zero.data_type).lower()
            yield f"{node.name}: {kind}, TensorRT takes int8 alone"
        elif numpy_helper.to_array(zero).any():
            yield f"{node.name}: its zero point is not 0"
        channels = 0 if scale is None else numpy_helper.to_array(scale).size
        for reader, place in readers.get(node.output[0], ()):
            if reader.op_type != "Conv":
                continue
            if place == 2:
                yield f"{reader.name}: its bias is quantised"
            if channels > 1 and (place != 1 or _axis(node) != 0):
                yield f"{reader.name}: scales per channel are for weights, axis 0"


def _axis(node: Any) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 1)


def _about_leaks(content: bytes) -> Iterator[str]:
    if leak := _LEAKS.search(content):
        shown = leak.group().decode(errors="replace")
        yield f"it holds a path of the machine that exported it ({shown}): clean it"
