"""``jaxcls prepare --source=FOLDER_OR_ARCHIVE --name=NAME``: make a dataset of images.

With --show and --config it draws the first training batch instead.
"""

import argparse
import pathlib
import re
from collections.abc import Sequence

from jaxcls import experiment
from jaxcls.commands import cli
from jaxcls.config import loading
from jaxcls.data import convert, preparing, sources
from jaxcls.data.clean import Shrink
from jaxcls.data.importers import tfrecords
from jaxcls.data.preparing import Options
from jaxcls.errors import DONE, InputError
from jaxcls.experiment import show


def parser() -> cli.Parser:
    """Returns the parser of the command's flags."""
    about = "Make a dataset of images; or look at a batch of one."
    parser = cli.Parser("prepare", about, bare="--source")
    add = parser.add_argument
    add("--source", help="folder or archive: images, ImageNet, CIFAR, MNIST")
    add("--name", help="what data.name will be: small letters, digits, underscores")
    add(
        "--data_dir", default="", help="where; default TFDS_DATA_DIR, ~/tensorflow_datasets"
    )
    add("--val_fraction", default="0", help="share of each class for split val")
    add("--test_fraction", default="0", help="share of each class for split test")
    add("--max_bad", default="0", help="files that may be left out (default 0)")
    add("--shrink", default="0", help="re-encode what is larger to this short side")
    add("--quality", default="95", help="JPEG quality of --shrink (default 95)")
    add("--threads", default="0", help="threads; default: one a core")
    add("--tfds", help="a dataset that TFDS itself prepares; needs jaxcls[tfds]")
    add("--show", metavar="PNG", help="draw the first training batch of --config")
    add("--config", help="for --show: a config file, as train takes it")
    cli.add_plugins(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    rest, overrides = cli.split_overrides(argv)
    flags = parser()
    args = flags.parse_args(rest)
    given = [f for f in ("source", "tfds", "show") if getattr(args, f) is not None]
    if len(given) != 1:
        raise InputError(
            "give one of --source=FOLDER_OR_ARCHIVE, --tfds=NAME and --show=PNG; for a"
            " folder of photos: --source=photos --name=photos --val_fraction=0.2"
        )
    if given == ["show"]:
        if not args.config:
            raise InputError(f"--show={args.show} needs --config=FILE")
        config = loading.load(args.config, cli.with_plugins(overrides, args))
        plugins = cli.plugins_of(args.config, config, args)
        show.draw(experiment.build(config, plugins=plugins), args.show)
        return DONE
    if overrides or args.config:
        raise InputError("--config belongs to --show=PNG; leave it out")
    root = sources.data_root(args.data_dir, "--data_dir")
    if given == ["tfds"]:
        if args.name is not None:
            raise InputError(f"--tfds={args.tfds} has a name of its own; leave --name out")
        _no_choice(flags, args, f"--tfds={args.tfds}")
        folder = convert.with_tfds(args.tfds, root)
    else:
        options = _options(args)
        _check_apart(options, root)
        old = tfrecords.tfds_folder(options.source)
        if old:
            _no_choice(flags, args, f"{old} is a TFDS dataset, and")
            folder = convert.from_tfrecord(old, root, options.name)
        else:
            folder = preparing.prepare(options, root, cli.plugins(args))
    manifest = sources.manifest(folder)
    counts = {split: sum(n) for split, n in manifest["examples"].items()}
    preparing.say(
        f"done: {folder.parent.name} {preparing.pairs(counts)}"
        f" classes={len(manifest['classes'])} rejected={manifest['rejected']}"
        f" {manifest['fingerprint'][:19]} in {folder}"
    )
    return DONE


def _no_choice(parser: cli.Parser, args: argparse.Namespace, what: str) -> None:
    """Raises `InputError` for a flag that has no effect on a copy."""
    for flag in (
        "val_fraction",
        "test_fraction",
        "max_bad",
        "shrink",
        "quality",
        "threads",
        "plugins",
    ):
        value = getattr(args, flag)
        if value != parser.get_default(flag):
            raise InputError(f"{what} is copied as it is; leave --{flag}={value} out")


def _check_apart(options: Options, root: pathlib.Path) -> None:
    """Raises `InputError` if the dataset's folder is the source, or lies in the source."""
    source, folder = options.source.resolve(), root / options.name
    if folder.is_relative_to(source):
        raise InputError(
            f"{folder} lies in --source={options.source}; give a --data_dir outside it, or"
            " another --name"
        )


def _fraction(text: str, flag: str) -> float:
    """Returns a share from 0 to below 1; raises `InputError`."""
    fraction = cli.number(text, flag)
    if fraction >= 1:
        raise InputError(f"{flag}={fraction} must be below 1; try 0.2")
    return fraction


def _options(args: argparse.Namespace) -> Options:
    """Returns the checked flags of --source; raises `InputError`."""
    try:
        source = pathlib.Path(args.source).expanduser()
    except RuntimeError as error:
        raise InputError(f"--source={args.source}: {error}; give a whole path") from None
    if not args.source:
        raise InputError("--source= is empty; give a folder or an archive")
    name = args.name or ""
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        stem = re.sub("[^a-z0-9]+", "_", (name or source.name.split(".")[0]).lower())
        raise InputError(
            f"--name={name} must be small letters, digits and underscores, such as"
            f" --name={stem.lstrip('_0123456789') or 'photos'}"
        )
    val_fraction = _fraction(args.val_fraction, "--val_fraction")
    test_fraction = _fraction(args.test_fraction, "--test_fraction")
    if val_fraction + test_fraction >= 1:
        raise InputError(
            f"--val_fraction={val_fraction} and --test_fraction={test_fraction} must be"
            " below 1 together; try 0.2 and 0.1"
        )
    short = cli.whole_number(args.shrink, "--shrink")
    quality = cli.whole_number(args.quality, "--quality", least=1)
    if quality > 100:
        raise InputError(f"--quality={quality} must be at most 100; try 95")
    return Options(
        source,
        name,
        val_fraction,
        test_fraction,
        cli.whole_number(args.max_bad, "--max_bad"),
        Shrink(short, quality) if short else None,
        cli.whole_number(args.threads, "--threads"),
    )
