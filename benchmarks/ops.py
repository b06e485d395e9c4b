"""Where the time of a compiled program goes: a table of the ops in a trace.

jax.profiler writes what ran when, and the program's own text says what each op is of;
both are read without TensorFlow.
"""

import collections
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks import hlo


class Spent(NamedTuple):
    """An op and the milliseconds of a step that went into it."""

    op: hlo.Op
    ms: float


class Profile(NamedTuple):
    """What `steps` steps of a program went into.

    ms: of a step, from the first op to the last by the clock. spent: most first; of ops
    that ran at once each has an equal share of the time, so that all add up to `ms` less
    what no op ran in.
    """

    steps: int
    ms: float
    spent: list[Spent]

    def by(self, column: str) -> dict[str, float]:
        """{part, or kind: share of a step}, the largest first, then "no op"."""
        sums: dict[str, float] = collections.defaultdict(float)
        for op, ms in self.spent:
            sums[getattr(op, column)] += ms / self.ms
        return {**_largest_first(sums), "no op": max(0.0, 1 - sum(sums.values()))}


def read(folder: pathlib.Path, program: str, steps: int) -> Profile | None:
    """What the newest trace in `folder` says of a program's `steps` steps.

    program: the text of the compiled module. Of several devices the first. None where the
    trace has no op of it.
    """
    files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
    ops = hlo.ops_of(program)
    spans = _spans(files[-1], hlo.name_of(program), ops) if files else []
    if not spans:
        return None
    began, ended = min(s.began for s in spans), max(s.ended for s in spans)
    sums: dict[str, float] = collections.defaultdict(float)
    for span, share in zip(spans, _shares(spans), strict=True):
        sums[span.name] += share / steps / 1e6
    spent = [
        Spent(ops.get(name, hlo.unknown(name)), ms)
        for name, ms in _largest_first(sums).items()
    ]
    return Profile(steps, (ended - began) / steps / 1e6, spent)


def table(profile: Profile, top: int = 25) -> str:
    """A profile as lines: what parts and kinds of op took, and the `top` longest ops."""
    head = f"{profile.steps} steps of {profile.ms:,.2f} ms, as traced"
    lines = [head, f"by part: {shares(profile.by('part'))}"]
    lines.append(f"by kind: {shares(profile.by('kind'))}")
    rows = [("ms a step", "share", "kind", "part", "result", "op", "where")]
    for op, ms in profile.spent[:top]:
        share = f"{ms / profile.ms:.1%}"
        rows.append((f"{ms:,.3f}", share, op.kind, op.part, op.result, op.name, op.where))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        numbers = [
            text.rjust(width) for text, width in zip(row[:2], widths[:2], strict=True)
        ]
        texts = [text.ljust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join([*numbers, *texts]).rstrip())
    return "\n".join(lines) + "\n"


def shares(found: Mapping[str, float]) -> str:
    """``{"forward": 0.3}`` -> ``"forward 30.0 %"``, without what is nothing."""
    said = (f"{name} {100 * share:.1f} %" for name, share in found.items() if share > 5e-4)
    return ", ".join(said)


class _Span(NamedTuple):
    """When an op was under way, in nanoseconds."""

    began: float
    ended: float
    name: str


def _spans(file: pathlib.Path, module: str, ops: Mapping[str, hlo.Op]) -> list[_Span]:
    """The ops of a module on the first device of a trace."""
    with warnings.catch_warnings():  # Its types are not made as Python 3.13 wants them.
        warnings.simplefilter("ignore", DeprecationWarning)
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
        devices = sorted((p for p in planes if "/device:" in p.name), key=lambda p: p.name)
        for plane in (*devices, *(p for p in planes if p.name == "/host:CPU")):
            found = _of_plane(list(plane.lines), module)
            found = [s for s in found if s.name not in ops or ops[s.name].kind != hlo.CALL]
            if found:
                return found
    return []


def _of_plane(lines: Sequence[Any], module: str) -> list[_Span]:
    """The ops of a module that the lines of a plane hold."""
    # A TPU's ops have a line to themselves, and are named by their text.
    own = [line for line in lines if line.name == "XLA Ops"]
    begun, ends = [], {}
    for event in (event for line in own or lines for event in line.events):
        stats = dict(event.stats)
        name = stats.get("hlo_op") or (event.name.split(" = ")[0] if own else "")
        is_ours = stats.get("hlo_module", module) == module
        if event.name.startswith("end: "):
            ends[stats.get("_c")] = event.start_ns
        elif name and is_ours and str(stats.get("device_ordinal", 0)) == "0":
            ended = event.start_ns + event.duration_ns
            begun.append((event.start_ns, ended, str(name).lstrip("%"), stats.get("_p")))
    # On CPU an op may go on after the call that began it: its "end" is then later.
    return [_Span(a, max(b, ends.get(key, b)), name) for a, b, name, key in begun]


def _shares(spans: Sequence[_Span]) -> list[float]:
    """The nanoseconds of each span, where those under way at once share them evenly."""
    marks = sorted(
        mark
        for i, span in enumerate(spans)
        for mark in ((span.began, 0, i), (span.ended, 1, i))
    )
    found = [0.0] * len(spans)
    # What one that is under way throughout has had so far.
    had, under_way, before = 0.0, 0, 0.0
    for now, is_end, i in marks:
        had += (now - before) / under_way if under_way else 0.0
        before = now
        under_way += -1 if is_end else 1
        found[i] += had if is_end else -had
    return found


def _largest_first(sums: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(sums.items(), key=lambda pair: -pair[1]))
