"""``jaxcls train --config=configs/digits.py``: train a classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcls.commands import cli
from jaxcls.config.plugins import Plugins
from jaxcls.errors import DONE, InputError

ABOUT = """Train an image classifier; the same command again continues, or says that the
run is finished. Any config key is set with --config.KEY=VALUE."""


def parser(verb: str = "train", about: str = ABOUT) -> cli.Parser:
    """Returns the parser of the command's flags."""
    from jaxcls.config.knobs import describe

    keys = (
        "config keys [default]; a * marks what a run is: changed on an old workdir, it is"
        f" refused\n{describe()}\n"
    )
    parser = cli.Parser(verb, about, keys, bare="--config", hints=True)
    ending = "" if verb == "train" else f"-{verb}"
    add = parser.add_argument
    add(
        "--config", required=True, metavar="FILE.py[:ARG]", help="such as configs/digits.py"
    )
    add(
        "--workdir",
        default="",
        help=f"folder of the run; default: runs/NAME_OF_THE_CONFIG{ending}",
    )
    add("--dry_run", action="store_true", help="print what would be trained; needs no data")
    add(
        "--devices",
        default="",
        metavar="N|TPU",
        help="with --dry_run: also compile the step, for N made-up CPU devices (0: for the"
        " devices that there are, where its time is measured too) or a TPU slice that need"
        " not be there, such as v5e:4x4, and say its memory",
    )
    cli.add_processes(parser)
    cli.add_plugins(parser)
    return parser


def main(argv: Sequence[str], flags: cli.Parser | None = None, penalties: str = "") -> int:
    """Runs the command; returns the exit status.

    flags: The parser of another verb. penalties: The default of probe.penalties; with it
        the run has the settings of a probe.
    """
    from jaxcls.config import loading as configs
    from jaxcls.config.rules import PROBE

    rest, overrides = cli.split_overrides(argv)
    args = (flags or parser()).parse_args(rest)
    config = configs.load(args.config, cli.with_plugins(overrides, args))
    if penalties:
        values = configs.flat(config)
        settings = {**PROBE, "data.train_ops": values["data.eval_ops"]}
        settings["probe.penalties"] = values["probe.penalties"] or penalties
        # What is given stays: it is refused rather than ignored.
        asked = {key: settings[key] for key in settings if key not in overrides}
        config = configs.from_flat({**values, **asked})
    name = Path(args.config.partition(":")[0]).stem
    workdir = args.workdir or f"runs/{name}{'-probe' if penalties else ''}"
    if not args.dry_run and args.process in ("", "0"):
        print(f"{workdir}: loading JAX", flush=True)

    from jaxcls import experiment
    from jaxcls.devices import hosts, mesh
    from jaxcls.training import stopping, train

    plugins = cli.plugins_of(args.config, config, args)
    if args.dry_run:
        print(_dry_run(config, plugins, args.devices))
        return DONE
    if args.devices:
        raise InputError(
            f"--devices={args.devices} is what --dry_run compiles for; add --dry_run, or"
            " give --config.mesh.devices=N"
        )
    mesh.prefer_same_bits()
    # The distributed runtime installs its SIGTERM handler first, so that ours replaces it.
    with (
        cli.joined(args),
        stopping.on_signals() as stop,
    ):
        result = train.run(experiment.build(config, plugins=plugins), workdir, stop)
        if hosts.is_first():
            print(f"{'already finished' if result.already else 'done'}: {result.line}")
    return DONE


def _dry_run(config: Any, plugins: Plugins, given: str) -> str:
    """Returns the description of a run; `given`, of --devices, also compiles its step."""
    from jaxcls import experiment
    from jaxcls.commands import dry_run
    from jaxcls.data import sources
    from jaxcls.devices import mesh
    from jaxcls.devices.topologies import described, is_slice

    devices, room = None, 0
    if is_slice(given):
        devices, room = described(given, "--devices")
        mesh.pretend(1)
    elif given and (count := cli.whole_number(given, "--devices")):
        mesh.pretend(count)
    if given not in ("", "0"):
        config.mesh.devices = 0
    facts = sources.published_facts(config.data.name)
    exp = experiment.build(config, facts, devices, plugins)
    return dry_run.describe(exp, bool(given), room, timed=given == "0")
