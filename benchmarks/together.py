"""Seeds at once against one after the other: ``python -m benchmarks.together``.

The steps of a recipe with resident images, batches made and moved as in a run, nothing
recorded: one seed's own program, and all seeds in one vmapped program, in turn in one
process, since machines are noisy. The ratio is of medians: above 1, at once is faster.
"""

import argparse
import statistics

from benchmarks import measuring
from jaxcls import config, experiment, together


def main() -> None:
    """Print the segments, their medians, and how many times as fast at once is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/digits.py", help="FILE.py[:ARG]")
    parser.add_argument("--model", default="", help="in place of the config's")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20, help="of a segment")
    parser.add_argument("--segments", type=int, default=5)
    args = parser.parse_args()
    overrides = {"mesh.devices": "1"}
    if args.model:
        overrides["model.name"] = args.model
    exp = experiment.build(config.load(args.config, overrides))
    together.check(exp, args.seeds)
    _ = exp.programs.lowered_train_step
    exps = [exp.reseeded({"seed": seed}) for seed in range(args.seeds)]
    group = together.Group(exp, args.seeds)
    size, ratios, rates = exp.config.batch_size, [], []
    for alone, at_once in together.segments(group, exps, args.steps, args.segments):
        ratios.append(args.seeds * alone / at_once)
        rates.append((size / alone, args.seeds * size / at_once))
        print("one after the other {:,.0f}, at once {:,.0f} images/s".format(*rates[-1]))
    medians = [statistics.median(column) for column in zip(*rates, strict=True)]
    print(
        f"{exp.config.model.name} batch {size}, {args.seeds} seeds on"
        f" {measuring.machine(exp.mesh.devices.flat[0])}: one after the other"
        f" {medians[0]:,.0f}, at once {medians[1]:,.0f} images/s; at once is"
        f" {measuring.spread(ratios)} times as fast"
    )


if __name__ == "__main__":
    main()
