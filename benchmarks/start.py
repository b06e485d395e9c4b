"""From a command to its first step: ``python -m benchmarks.start``.

Starts what `jaxcls train` starts again and again, each time in a process of its own, as it
is and with a warm `compile.cache`, in turn, since machines are noisy; every process leaves
after its first step. Where the seconds go:

    python       until the interpreter runs the first line
    imports      of everything that `jaxcls train` imports
    building     config, data, tracing and lowering, the run's folder, the initial state
    compile      XLA's part of all of it; with a warm cache, reading what it made before
    first step   the first batch, its picture for TensorBoard, and the step until it is done

By the clock, and (`processor`) what all cores spent, which a busy machine changes less. The
first line on screen is timed apart, of the command itself.

``--config`` may be given several times; ``--config.KEY=VALUE`` holds for all of them.
"""

import argparse
import contextlib
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

PHASES = ("python", "imports", "building", "compile", "first step")
# The goals: seconds to the first line, and to the first step with a warm cache; how many
# times as long as Python, imports and compiling alone a start without one takes.
LINE_GOAL, WARM_GOAL, COLD_GOAL = 1.5, 3.0, 1.2


def child(
    began: float, file: str, workdir: str, until: int, overrides: Mapping[str, str]
) -> None:
    """Train `until` steps as `train` does, and print the seconds of each phase as JSON.

    began: when the parent started this process, by the clock that both have.
    """
    marks = [(began, 0.0), _now()]
    from jaxcls import experiment
    from jaxcls.config import loading
    from jaxcls.data import sources
    from jaxcls.devices import hosts, mesh
    from jaxcls.training import stepping, stopping, train

    _ = hosts, sources  # Which `train` imports too.
    marks.append(_now())
    import jax

    from jaxcls.errors import StoppedError

    # Of the phase that is under way, by how many marks there are.
    compiling = {3: 0.0, 4: 0.0, 5: 0.0}

    def note(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiling[len(marks)] += duration_secs

    def marked(exp: experiment.Experiment) -> stepping.Stepper:
        """The product's own steps; notes when the program was there and when it ran."""
        own = stepping.one_by_one(exp)

        def compile() -> None:
            own.compile()
            marks.append(_now())

        def advance(state: Any, block: Sequence[Any]) -> Any:
            found = jax.block_until_ready(own.advance(state, block))
            if len(marks) == 4:
                marks.append(_now())
            return found

        return own._replace(compile=compile, advance=advance)

    vars(stepping)["choose"] = marked  # Which `train.run` asks.
    jax.monitoring.register_event_duration_secs_listener(note)
    mesh.prefer_same_bits()
    exp = experiment.build(loading.load(file, overrides))
    with stopping.on_signals() as stop, contextlib.suppress(StoppedError):
        train.run(exp, workdir, stop, until=until)
    clock, processor = (
        [after - before for before, after in itertools.pairwise(column)]
        for column in zip(*marks, strict=True)
    )
    python, imports, building, first = clock
    inside = compiling[3], compiling[4]
    each = (python, imports, building - inside[0], sum(inside), first - inside[1])
    found = dict(zip(PHASES, each, strict=True))
    found |= {"processor": sum(processor), "processor imports": sum(processor[:2])}
    from benchmarks import measuring

    found["memory"] = measuring.peak_rss()
    print("FOUND" + json.dumps(found))


def _now() -> tuple[float, float]:
    """(a clock that all processes have, what the cores spent on this one), in seconds."""
    return time.monotonic(), time.process_time()


def start(
    file: str, cache: str, overrides: Mapping[str, str], until: int = 1
) -> dict[str, float]:
    """Seconds of each phase of a start in a process and a folder of its own.

    "processor": what all cores spent up to the first step; "memory": the most bytes that
    it had up to step `until`, where it saves and leaves.
    """
    changed = json.dumps({**overrides, "compile.cache": cache})
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.start", "--child"]
        given = repr(time.monotonic()), file, f"{folder}/run", str(until), changed
        done = subprocess.run([*command, *given], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    if done.returncode or not lines:
        raise SystemExit(f"{file} does not start: {done.stderr.strip()[-2000:]}")
    found: dict[str, float] = json.loads(lines[0].removeprefix("FOUND"))
    return found


def first_line(file: str, overrides: Mapping[str, str]) -> float:
    """Seconds from `python -m jaxcls.main` to its first line on screen."""
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    with tempfile.TemporaryDirectory() as folder:
        given = [f"--config={file}", f"--workdir={folder}/run", *flags]
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxcls.main", *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.monotonic() - began
        process.kill()
        process.communicate()
    return seconds


def report(name: str, starts: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """Print the phases of some starts; (seconds, times imports and compile), medians."""
    from benchmarks import figures, measuring

    whole = [sum(each[phase] for phase in PHASES) for each in starts]
    over = [
        all_of_it / (each["python"] + each["imports"] + each["compile"])
        for all_of_it, each in zip(whole, starts, strict=True)
    ]
    rows = [
        (phase, measuring.spread([each[phase] for each in starts], ".2f"))
        for phase in PHASES
    ]
    rows.append(("to the first step", measuring.spread(whole, ".2f")))
    rows.append(("over imports and compile", measuring.spread(over, ".2f")))
    for key in ("processor imports", "processor"):
        rows.append((key, measuring.spread([each[key] for each in starts], ".2f")))
    print(figures.table((name, "seconds"), rows), "\n", flush=True)
    return statistics.median(whole), statistics.median(over)


def main() -> None:
    """Print the phases of the starts of each config, cold and warm."""
    if sys.argv[1:2] == ["--child"]:
        began, file, workdir, until, changed = sys.argv[2:]
        return child(float(began), file, workdir, int(until), json.loads(changed))
    from benchmarks import measuring
    from jaxcls.commands import cli

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", action="append", metavar="FILE.py[:ARG]")
    parser.add_argument("--starts", type=int, default=5, help="of each kind")
    rest, overrides = cli.split_overrides(sys.argv[1:])
    args = parser.parse_args(rest)
    for file in args.config or ["configs/digits.py"]:
        cold, warm = [], []
        with tempfile.TemporaryDirectory() as cache:
            start(file, cache, overrides)  # Fills it, and prepares what data need that.
            for _ in range(args.starts):
                cold.append(start(file, "", overrides))
                warm.append(start(file, cache, overrides))
            size = sum(
                path.stat().st_size
                for path in pathlib.Path(cache).rglob("*")
                if path.is_file()
            )
        _, over = report(f"{file}, no cache", cold)
        seconds, _ = report(f"{file}, warm cache of {size / 2**20:.1f} MiB", warm)
        lines = [first_line(file, overrides) for _ in range(args.starts)]
        print(f"first line after {measuring.spread(lines, '.2f')} s (goal {LINE_GOAL})")
        print(
            f"no cache: {over:.2f} times imports and compile (goal {COLD_GOAL}); warm"
            f" cache: first step after {seconds:.1f} s (goal {WARM_GOAL:.0f} for digits)\n"
        )
    import jax

    machine = measuring.machine(jax.devices()[0])
    print(f"{args.starts} starts of each on {machine}")


if __name__ == "__main__":
    main()
