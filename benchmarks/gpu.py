"""What is to be measured on a GPU, in ten minutes: ``python -m benchmarks.gpu``.

Each part is a command of its own, whose output goes to a file of --out and whose last lines
are printed: steps beside compiled PyTorch, XLA's kernels under flags for equal bits (do
they cost speed, and are two processes' bits equal?), steps in one dispatch, and the speed
run. A part that does not end in its time is stopped, and the next one begins.
--data_dir is where CIFAR-10 is prepared. --tiny takes sizes for a CPU, to test this.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import NamedTuple

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# Deterministic kernels that are still tuned: what was found is kept, and given again.
NARROW = "--xla_gpu_exclude_nondeterministic_ops=true"


class Part(NamedTuple):
    """A command: the arguments of python, seconds at most, and XLA_FLAGS."""

    name: str
    arguments: tuple[str, ...]
    seconds: int
    flags: str = ""


def _step(
    model: str, size: int, batch: int, reference: str, precision: str, steps: int = 0
) -> tuple[str, ...]:
    return (
        *("-m", "benchmarks.step", f"--model={model}", f"--size={size}"),
        *(f"--batch={batch}", f"--precision={precision}", f"--reference={reference}"),
        *("--segments=3", f"--steps={steps}"),
    )


def parts(out: pathlib.Path, data_dir: str, tiny: bool) -> list[Part]:
    """Returns the parts in order; `out` keeps the results of autotuning."""
    precision = "float32" if tiny else "bfloat16"
    size, many, some = (16, 8, 8) if tiny else (224, 256, 128)
    models: tuple[str, ...] = ("resnet50", "vit_b_16", "convnext_tiny")
    if tiny:
        models = ("cnn(widths=(4,))",)
    found = [
        Part(
            f"step-{model.partition('(')[0]}",
            _step(model, size, batch, "none" if tiny else "compiled", precision),
            100,
        )
        for model, batch in zip(models, (many, some, some), strict=False)
    ]
    fixed = _step(models[0], size, many, "none", precision, steps=2 if tiny else 20)
    tuned = out / "autotune.textproto"
    kinds = {
        "free": "",
        "deterministic": DETERMINISTIC,
        "narrow": f"{NARROW} --xla_gpu_dump_autotune_results_to={tuned}",
        "narrow-again": f"{NARROW} --xla_gpu_load_autotune_results_from={tuned}",
    }
    for kind, flags in [*kinds.items()][: 2 if tiny else None]:
        # A CPU's XLA ends the process at a flag of GPUs that it does not know.
        found.append(Part(f"flags-{kind}", fixed, 40, "" if tiny else flags))
    speed: tuple[str, ...] = ("-m", "benchmarks.speedrun", f"--seeds={1 if tiny else 5}")
    speed += (f"--config.data.dir={data_dir}",)
    if tiny:
        speed += ("--config=configs/digits.py", "--steps=4")
        speed += ("--config.model.name=cnn(widths=(4,), dense=8)",)
    for loop in ("on", "off"):
        found.append(Part(f"loop-{loop}", (*speed, f"--config.compile.loop={loop}"), 90))
    return found


def run(part: Part, out: pathlib.Path) -> str:
    """Runs a part into a file of `out`; returns its last lines."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {part.flags}".strip()
    file = out / f"{part.name}.txt"
    with file.open("w") as stream:
        try:
            done = subprocess.run(
                [sys.executable, *part.arguments],
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=part.seconds,
                env={**os.environ, "XLA_FLAGS": flags},
            )
            end = f"status {done.returncode}"
        except subprocess.TimeoutExpired:
            end = f"stopped after {part.seconds} s"
    said = file.read_text().splitlines()
    kept = [line for line in said if re.search(r"by the|PyTorch:|digest|±|rror", line)]
    return "\n".join([f"== {part.name}: {end}", *kept[-8:]])


def main() -> None:
    """Runs all parts that fit into the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/gpu", help="folder of the output")
    parser.add_argument("--data_dir", default="", help="where CIFAR-10 is prepared")
    parser.add_argument("--seconds", type=int, default=570, help="for all parts")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    args = parser.parse_args()
    out, began = pathlib.Path(args.out).resolve(), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    for part in parts(out, args.data_dir, args.tiny):
        left = args.seconds - int(time.monotonic() - began)
        if left < 15:
            print(f"== {part.name}: no time is left")
            continue
        print(run(part._replace(seconds=min(part.seconds, left)), out), flush=True)


if __name__ == "__main__":
    main()
