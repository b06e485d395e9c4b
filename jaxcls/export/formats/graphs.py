"""ONNX graphs: made smaller without a change of results, and declared in an old opset.

onnxruntime's own optimizer does most: at its basic level it folds constants, cancels
transpositions, folds multiplications and additions into convolutions, and writes only
operators of the ONNX standard. _RULES change first what it would leave. It alone has the
norms left as three operators each, and a MobileNetV2 taking 2.7 times torch.onnx's file.
"""

import importlib
import math
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcls.errors import InputError

# The default is the first that has a graph's operators. onnxruntime 1.20 knows 21.
OPSETS = (17, 18, 19, 20, 21, 22, 23)
# The newest version of the file that onnxruntime 1.20 reads.
_MOST_IR = 10
# From [B, H, W, C] to [B, C, H, W].
_CHANNELS_FIRST = (0, 3, 1, 2)


def opset_of(graph: Any, asked: int) -> int:
    """Returns the opset to declare for a graph: `asked`, or for 0 the least that has it.

    Raises `InputError` if the opset lacks one of the graph's operators.
    """
    lacking = {opset: _lacking(graph, opset) for opset in OPSETS}
    able = [opset for opset in OPSETS if not lacking[opset]]
    opset = asked or (able or OPSETS[-1:])[0]
    if opset not in able:
        least = f"--opset={able[0]} or more" if able else "--format=stablehlo"
        raise InputError(
            f"--opset={opset} has no {', '.join(sorted(lacking[opset]))} as this model"
            f" needs it; give {least}"
        )
    return opset


def lean(model: Any, opset: int, path: pathlib.Path) -> Any:
    """Returns an ONNX model as an equal and smaller one that declares `opset`.

    path: a file, which is written over and removed. Passes on any exception of onnxruntime.
    """
    onnx = importlib.import_module("onnx")
    runtime = importlib.import_module("onnxruntime")
    imports = [onnx.helper.make_opsetid("", opset)]
    _rewrite(model.graph)
    _declare(model, imports)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3  # Errors: it warns of each constant that it removes.
    content, providers = model.SerializeToString(), ["CPUExecutionProvider"]
    runtime.InferenceSession(content, options, providers=providers)
    made = onnx.load(path)
    path.unlink()
    _declare(made, imports)  # onnxruntime declares all that it knows.
    return made


def _declare(model: Any, imports: list[Any]) -> None:
    """Sets the opsets that a model imports, and the least version of the file for them."""
    onnx = importlib.import_module("onnx")
    del model.opset_import[:]
    model.opset_import.extend(imports)
    model.ir_version = min(_MOST_IR, onnx.helper.find_min_ir_version_for(imports))


def _lacking(graph: Any, opset: int) -> set[str]:
    """Returns the operators of a graph that an opset lacks, or has in another form."""
    checker = importlib.import_module("onnx").checker
    context = type(checker.DEFAULT_CONTEXT)()
    context.ir_version, context.opset_imports = _MOST_IR, {"": opset}
    lacking = set()
    for node in graph.node:
        try:
            checker.check_node(node, context)
        except checker.ValidationError:
            lacking.add(node.op_type)
    return lacking


class _Parts(NamedTuple):
    """A graph in change. nodes: by the name of their output, in order. ranks: of values.

    reads: how often nodes read a name.
    """

    graph: Any
    nodes: dict[str, Any]
    constants: dict[str, np.ndarray]
    ranks: Mapping[str, int]
    reads: Mapping[str, int]

    def add(self, values: np.ndarray, name: str) -> str:
        """Adds a constant; returns its name."""
        self.constants[name] = values
        made = importlib.import_module("onnx").numpy_helper.from_array(values, name)
        self.graph.initializer.append(made)
        return name

    def alone(self, name: str, *kinds: str) -> Any:
        """Returns the node of some kind that makes a name for one reader, else None."""
        node = self.nodes.get(name)
        return node if node and node.op_type in kinds and self.reads[name] == 1 else None


def _rewrite(graph: Any) -> None:
    """Rewrites, in place and by _RULES, what onnxruntime's basic level would leave."""
    to_array = importlib.import_module("onnx").numpy_helper.to_array
    parts = _Parts(
        graph,
        {},
        {each.name: to_array(each) for each in graph.initializer},
        {each.name: len(each.type.tensor_type.shape.dim) for each in graph.value_info},
        Counter(name for node in graph.node for name in node.input),
    )
    for node in graph.node:
        rule = _RULES.get(node.op_type)
        new = rule(node, parts) if rule else node
        parts.nodes[new.output[0]] = new
    del graph.node[:], graph.value_info[:]  # Shapes may have changed.
    graph.node.extend(parts.nodes.values())


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> Any:
    make = importlib.import_module("onnx").helper.make_node
    return make(kind, inputs, [output], **attributes)


def _added(node: Any, parts: _Parts) -> Any:
    """Subtracting a constant is adding its negative, which a convolution's bias takes."""
    first, second = node.input
    values = parts.constants.get(second)
    if values is None or values.dtype.kind != "f":
        return node
    out = node.output[0]
    return _node("Add", [first, parts.add(-values, f"{out}_negative")], out)


def _clipped(node: Any, parts: _Parts) -> Any:
    """The minimum of a maximum, with scalar constants, is a Clip."""
    low = parts.alone(node.input[0], "Max")
    if low is None or len(low.input) != 2 or len(node.input) != 2:
        return node
    bounds = [low.input[1], node.input[1]]
    if any(name not in parts.constants or parts.constants[name].shape for name in bounds):
        return node
    del parts.nodes[node.input[0]]
    return _node("Clip", [low.input[0], *bounds], node.output[0])


def _over_channels_first(node: Any, parts: _Parts) -> Any:
    """A sum over the positions of [B, H, W, C] is one over those of [B, C, H, W].

    That is the layout of the convolutions before it, so that transpositions cancel.
    """
    first, out = node.input[0], node.output[0]
    axes = parts.constants.get(node.input[-1], np.array(0))
    if axes.tolist() != [1, 2] or parts.ranks.get(out) != 2:
        return node
    moved = f"{out}_moved"
    parts.nodes[moved] = _node("Transpose", [first], moved, perm=_CHANNELS_FIRST)
    axes = np.array([2, 3])
    return _node("ReduceSum", [moved, parts.add(axes, f"{out}_axes")], out, keepdims=0)


def _with_pads(node: Any, parts: _Parts) -> Any:
    """A pooling of maxima pads with -inf itself, as its Pad does before a Transpose."""
    moved = parts.alone(node.input[0], "Transpose")
    pad = moved and parts.alone(moved.input[0], "Pad")
    if not pad or len(pad.input) != 3:
        return node
    pads, value = (parts.constants.get(name) for name in pad.input[1:])
    if pads is None or value != -np.inf:
        return node
    options = _attributes(node)
    sides = pads[[1, 2, 5, 6]].tolist()
    window = min(options["kernel_shape"])
    if sum(sides) != pads.sum() or min(sides) < 0 or max(sides) >= window:
        return node
    del parts.nodes[moved.input[0]]
    moved.input[0] = pad.input[0]
    options |= {"pads": sides, "auto_pad": "NOTSET"}
    return _node("MaxPool", node.input, node.output[0], **options)


def _earlier(node: Any, parts: _Parts) -> Any:
    """A transposition is before casts and arithmetic with a constant for each channel.

    Of images it moves bytes then, and the arithmetic is faster by channel.
    """
    if tuple(_attributes(node)["perm"]) != _CHANNELS_FIRST:
        return node
    first, out, passed = node.input[0], node.output[0], []
    while (source := parts.alone(first, "Cast", "Add", "Mul", "Div")) and all(
        _is_by_channel(parts.constants.get(name)) for name in source.input[1:]
    ):
        passed.append(parts.nodes.pop(first))
        first = source.input[0]
    if not passed:
        return node
    last = f"{out}_moved"
    parts.nodes[last] = _node("Transpose", [first], last, perm=_CHANNELS_FIRST)
    for source in reversed(passed):
        source.input[0] = last
        for i, name in enumerate(source.input[1:], 1):
            values = parts.constants[name]
            by_channel = values.reshape(-1, 1, 1) if values.shape else values
            source.input[i] = parts.add(by_channel, f"{source.output[0]}_{i}")
        last = source.output[0]
        parts.nodes[last] = source
    del parts.nodes[last]
    source.output[0] = out
    return source


def _is_by_channel(values: np.ndarray | None) -> bool:
    """Returns whether a constant has an axis of channels alone, the last of up to four."""
    return values is not None and values.ndim <= 4 and math.prod(values.shape[:-1]) == 1


_RULES: dict[str, Callable[[Any, _Parts], Any]] = {
    "MaxPool": _with_pads,
    "Min": _clipped,
    "ReduceSum": _over_channels_first,
    "Sub": _added,
    "Transpose": _earlier,
}


def _attributes(node: Any) -> dict[str, Any]:
    get = importlib.import_module("onnx").helper.get_attribute_value
    return {each.name: get(each) for each in node.attribute}
