"""What each op of a compiled program is, as XLA's text of the program says."""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# What an op is of, in a train step.
PARTS = ("forward", "backward", "update and the rest")

# The kind of a fusion is the first of these that anything in it is.
_KINDS = {
    "convolution": {"convolution"},
    "matrix product": {"dot", "ragged-dot"},
    "collective": {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"}
    | {"collective-permute"},
    "gather, scatter, sort": {"gather", "scatter", "sort", "select-and-scatter"},
    "reduction": {"reduce", "reduce-window"},
    "random": {"rng", "rng-bit-generator"},
    "copy, transposition": {"copy", "transpose", "copy-start", "copy-done"},
}
_MOVES = {"reshape", "bitcast", "broadcast", "slice", "pad", "reverse"}
_MOVES |= {"concatenate", "dynamic-slice", "dynamic-update-slice", "tuple", "constant"}
_MOVES |= {"get-tuple-element", "parameter", "convert"}
# What libraries' calls are, by their targets.
_TARGETS = {"conv": "convolution", "gemm": "matrix product", "matmul": "matrix product"}
_TARGETS |= {
    "dot": "matrix product",
    "attention": "matrix product",
    "fmha": "matrix product",
}
# Their time is that of what they call.
CALL, _CALLS = "call", {"while", "conditional", "call"}

# Of a result in the table.
_WIDTH = 28

_HEAD = re.compile(r"(?:ENTRY )?%?([\w.-]+) .*\{\s*")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(")


class Op(NamedTuple):
    """An op of a compiled program.

    kind: such as "convolution". part: of PARTS, that of its result; whatever is fused with
    it counts as that. result: dtype and shape. where: layer and primitive.
    """

    name: str
    kind: str
    part: str
    result: str
    where: str


def name_of(program: str) -> str:
    """The name of a compiled module, from its text."""
    return program.split(maxsplit=2)[1].rstrip(",")


def ops_of(program: str) -> dict[str, Op]:
    """{name: op} of the text of a compiled module, whether they run alone or fused."""
    insides: dict[str, list[_Line]] = {}
    inside: list[_Line] = []
    for text in program.splitlines():
        if head := _HEAD.fullmatch(text):
            inside = insides.setdefault(head[1], [])
        elif found := _LINE.match(text):
            inside.append(_line_of(text, *found.groups()))
    ops = {}
    for lines in insides.values():
        scopes = _scopes(lines, insides)
        for line in lines:
            fused = insides.get(line.calls) or [line]
            ops[line.name] = _op_of(line, _kind_of(fused), scopes.get(line.name, ""))
    return ops


class _Line(NamedTuple):
    """An instruction as the text has it. calls: the computation that is fused in it."""

    name: str
    result: str
    opcode: str
    operands: list[str]
    target: str
    calls: str
    scope: str


def _line_of(text: str, name: str, result: str, opcode: str) -> _Line:
    def first(pattern: str) -> str:
        found = re.search(pattern, text)
        return found[1] if found else ""

    operands = re.findall(r"%([\w.-]+)", text.partition(f" {opcode}(")[2].split("), ")[0])
    target = first(r'custom_call_target="([^"]*)"')
    calls = first(r"calls=%?([\w.-]+)") if opcode == "fusion" else ""
    scope = first(r'op_name="([^"]*)"')
    return _Line(
        name, result, opcode, operands, target, calls, scope if "/" in scope else ""
    )


def _scopes(
    lines: Sequence[_Line], insides: Mapping[str, Sequence[_Line]]
) -> dict[str, str]:
    """What each instruction is of, such as "jit(train_step)/jvp(ResNet)/conv1".

    Its own scope. XLA's own copies and rewritten convolutions have none: then that of
    what they are for, or else of what is fused in them, or of what they are made of.
    """
    lines = [line for line in lines if line.opcode != "parameter"]
    found = {line.name: line.scope for line in lines}
    users = collections.defaultdict(list)
    for line in lines:
        for operand in line.operands:
            users[operand].append(line.name)

    def settle(line: _Line, names: Sequence[str], *, only_of_model: bool = True) -> None:
        if not found[line.name]:
            near = [found.get(name, "") for name in names]
            near = [scope for scope in near if "jvp(" in scope or not only_of_model]
            found[line.name] = next(filter(None, near), "")

    for line in reversed(lines):
        settle(line, users[line.name])
    for line in lines:
        fused = (each.scope for each in reversed(insides.get(line.calls, [])))
        found[line.name] = found[line.name] or next(filter(None, fused), "")
        settle(
            line,
            sorted(line.operands, key=lambda name: "transpose(" not in found.get(name, "")),
        )
    for line in reversed(lines):
        settle(line, users[line.name], only_of_model=False)
    return found


def _op_of(line: _Line, kind: str, scope: str) -> Op:
    """What an instruction is, of a kind and a scope."""
    part = PARTS[-1]
    if "jvp(" in scope:
        part = PARTS[1] if "transpose(" in scope else PARTS[0]
    result = re.sub(r"\{[^}]*\}|/\*.*?\*/", "", line.result)
    if len(result) > _WIDTH:
        result = f"{result[: _WIDTH - 3]}..."
    # Of what is written for one platform, JAX names the branch.
    scope = re.sub(r"/cond/branch_\d+_fun", "", scope)
    where = re.sub(r"^jit\(\w+\)/|jit\(|transpose\(|jvp\(|\)", "", scope)
    return Op(line.name, kind, part, result, where)


def _kind_of(lines: Sequence[_Line]) -> str:
    """The kind of an instruction, or of several that are fused."""
    opcodes = {line.opcode for line in lines}
    if opcodes & _CALLS:
        return CALL
    for kind, members in _KINDS.items():
        if opcodes & members:
            return kind
    targets = [line.target for line in lines if line.target]
    for word, kind in _TARGETS.items():
        if any(word in target.lower() for target in targets):
            return kind
    if targets:
        return targets[0]
    return "data movement" if opcodes <= _MOVES else "elementwise"


def unknown(name: str) -> Op:
    """An op that the text does not have."""
    return Op(name, "unknown", PARTS[-1], "", "")
