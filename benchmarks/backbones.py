"""The memory and the time of a step with each backbone: ``python -m benchmarks.backbones``.

Prints a table of configs/backbones.py for the devices that there are: all params, low-rank
parts, and a probe. Each figure is of a dry run (``--dry_run --devices=0``) in a process of
its own, with random weights of the model's shape.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence

BACKBONES = (
    *("dinov2_s_14", "dinov2_b_14", "dinov3_s_16", "dinov3_b_16", "clip_b_32", "clip_b_16"),
    *("siglip_b_16", "swin_t", "swin_b", "convnextv2_nano", "convnextv2_tiny"),
    "convnextv2_base",
)
WAYS = {"all": ("train", ""), "LoRA": ("train", ",lora"), "probe": ("probe", "")}
# What the hub's weights bring, and facts of the data, so that neither is needed.
WITHOUT = ("init.weights=", "init.head=keep", "normalize=imagenet")
DATA = ("data.name=imagenet2012", "data.train=train[:1%]", "data.eval=train[99%:]")


def measured(backbone: str, way: str, batch_size: int) -> str:
    """Returns "memory, seconds" of a step as the dry run says them."""
    verb, ending = WAYS[way]
    settings = (*WITHOUT, *DATA, f"batch_size={batch_size}")
    config = f"--config=configs/backbones.py:{backbone}{ending}"
    command = [sys.executable, "-m", "jaxcls", verb, config, "--dry_run", "--devices=0"]
    command += [f"--config.{each}" for each in settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip()
    memory = re.search(r"^compiled: +([\d.,]+ \w+)", done.stdout, re.MULTILINE)
    time = re.search(r"^time: +(\S+ s) a step|^time: +(not.*)", done.stdout, re.MULTILINE)
    return f"{memory[1] if memory else '?'}, {(time[1] or time[2]) if time else '?'}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", action="append", help="one; may be given again")
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args(argv)
    print(f"| batch {args.batch} | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
    for name in args.backbone or BACKBONES:
        cells = [measured(name, way, args.batch) for way in WAYS]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
