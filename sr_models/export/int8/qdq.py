"""Int8 values around convolutions for given grids: which tensors are rounded, and where restored.

Two forms: `cpu` rounds inputs and outputs of convolutions and has int32 biases, `trt` rounds inputs
and leaves biases in float. The nodes are written in `writer.py`; grids and what stays in float are
chosen elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from sr_models.export.int8.between import Join, gates, joins, rounded_between, shuffles
from sr_models.export.int8.graph import cleaned, convolutions, readers, silus
from sr_models.export.int8.grids import Grid, Target, side_by_side
from sr_models.export.int8.writer import Writer


def quantised(
    model: Any, grids: Mapping[str, Grid], kept_in_float: Collection[str], target: Target
) -> Any:
    """A copy of `model` whose convolutions, but for `kept_in_float`, compute with int8 values.

    A runtime's integer convolution knows one scale for its input and one for its output. Channels
    get scales of their own nevertheless: what evens an output out is a factor of the weights that
    make it, taken back where it is read in float; what evens an input out, of those that read it.

    For `cpu` what lies between two of them is rounded too, where it is cheap: ONNX Runtime then
    looks the sigmoid of a SiLU or of a gate up, adds and multiplies integers, shuffles bytes and
    puts them side by side. A 1x1 convolution in float multiplies what is rounded already as
    integers, and adds the rest: its output is rounded nowhere.

    Args:
        model: `onnx.ModelProto`, fp32, opset 13 or above; left as it is.
        grids: of the input and, for `cpu`, the output of every convolution that is quantised.
        kept_in_float: names of convolutions.
        target: see above.

    Raises:
        KeyError: a grid is missing.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    layers = convolutions(model)
    chosen = {c.node: c for c in layers if c.name not in kept_in_float}
    floats = {c.node: c for c in layers if c.node not in chosen}
    outputs = {c.output for c in chosen.values()} if target == "cpu" else set()
    inputs = {c.input for c in chosen.values()}
    even = {name for name, grid in grids.items() if grid.even}
    gated, shuffled = gates(model, outputs & even), dict[str, str]()
    integer, offsets = frozenset[str](), dict[str, np.ndarray]()
    mixed, turned = dict[str, Join](), set[str]()
    grids = dict(grids)
    if target == "cpu":
        integer = rounded_between(model, chosen.values(), gated, even)
        # What 256 levels of a gate cost grows with what it multiplies: a float map may be large.
        behind = readers(model)
        gated = tuple(
            g for g in gated if any(n.output[0] in integer for n in behind.get(g.result, ()))
        )
        outputs |= integer
        shuffled = shuffles(model, outputs & even)
        for name, source in shuffled.items():
            if name in inputs:  # its bytes are there already, on the grid of what is shuffled
                scale = np.full_like(grids[name].scale, grids[source].step)
                grids[name] = Grid(scale, grids[source].zero_point)
        for join in joins(model, chosen.values(), outputs | inputs):
            if len(join.rounded) == len(join.parts):
                parts = [grids[name] for name in join.parts]
                grids[join.result], offsets[join.result] = side_by_side(parts)
        every = [n.output[0] for n in model.graph.node if n.op_type == "Concat"]
        products = set().union(*silus(model, outputs & even, inputs & even, every).values())
        for join in joins(model, floats.values(), outputs | products):
            if set(join.parts) <= set(grids):
                mixed[join.result] = join
        turned = _read_by_sums(model, inputs) & {c.output for c in floats.values()}
    sigmoids = silus(model, outputs & even, inputs & even, {*offsets, *mixed})
    writer = Writer(result, grids, offsets, target, frozenset(outputs))
    looked_up, results = {g.sigmoid: g for g in gated}, {g.result: g for g in gated}
    nodes = list(result.graph.node)
    del result.graph.node[:]
    for name in sorted({value.name for value in model.graph.input} & inputs):
        writer.round(name)
    for node in nodes:
        made = list(node.output)
        if made[0] in results:
            writer.restore_gate(results[made[0]])
            continue
        if made[0] in looked_up:
            writer.look_up(node)
            continue
        if made[0] in mixed:
            continue
        if made[0] in offsets:
            writer.join(node)
            continue
        if made[0] in shuffled:
            writer.shuffle(node)
            continue
        if node.name in chosen:
            writer.rewire(node, chosen[node.name])
        if made[0] in integer:
            for index, name in enumerate(node.input):
                if name in inputs - outputs:
                    node.input[index] = f"{name}_for_{node.name}"
                    writer.restore(name, node.input[index])
        for index, name in enumerate(made):
            if name in outputs:
                node.output[index] = f"{name}_evened"
        if made[0] in sigmoids:
            node.output[0] = f"{made[0]}_float"
        if node.name in floats and node.input[0] in mixed:
            writer.multiply(node, floats[node.name], mixed[node.input[0]])
        elif made[0] in turned:
            writer.turn(node)
        else:
            writer.append(node)
        if made[0] in sigmoids:
            writer.round_sigmoid(made[0])
        for name in made:
            if name in outputs or name in inputs:
                writer.round(name)
            if name in outputs:
                writer.restore_for_float(name)
    writer.drop_unread()
    entry = result.metadata_props.add()
    entry.key, entry.value = "quantisation", f"int8-{target}"
    return cleaned(result)


def _read_by_sums(model: Any, rounded: Collection[str]) -> set[str]:
    """What is added or multiplied, and is one of `rounded` or becomes one by sums and products."""
    behind, found = readers(model), set(rounded)
    for node in reversed(model.graph.node):
        if node.op_type in ("Add", "Mul") and node.output[0] in found:
            found |= set(node.input)
    return {n for n in found if any(r.op_type in ("Add", "Mul") for r in behind.get(n, []))}
