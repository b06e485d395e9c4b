"""``jaxcls export --workdir=RUN``: write a trained run for other programs."""

import pathlib
import re
from collections.abc import Sequence

from jaxcls.commands import cli
from jaxcls.config import calls
from jaxcls.data import files
from jaxcls.errors import DIFFERS, DONE, InputError, lookup
from jaxcls.export import facts as export_facts
from jaxcls.export import formats, pushing, writing
from jaxcls.export.formats.graphs import OPSETS
from jaxcls.export.formats.model import Asked
from jaxcls.runs.workdir import Workdir


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    rest, overrides = cli.split_overrides(argv)
    args = parser().parse_args(rest)
    plugins = cli.plugins(args)
    table = plugins.added_to("FORMATS", formats.FORMATS)
    kind = lookup(table, args.format, "--format")
    for flag, of in _FLAGS.items():
        if flag in cli.given(parser(), args) and args.format != of:
            raise InputError(f"{flag} is of --format={of}; leave it out")
    formats.check(args.format, kind)
    batch_size = cli.whole_number(args.batch_size, "--batch_size", least=1)
    asked = Asked(args.names, batch_size, _opset(args.opset), _license(args.license))
    if args.push:
        pushing.check(args.push)
    elif args.public:
        raise InputError("--public is of --push=ORG/NAME; give both")
    if args.images:
        files.check(args.images)
    place = cli.place(args)
    folder = Workdir(place) if isinstance(place, str) else None
    path = (
        folder.path if folder else pathlib.Path(calls.parse(args.model, "--model")[0].name)
    )
    if not (folder or args.data or args.images):
        raise InputError(
            "an export is checked on real images, and published weights have none; give"
            " --images=FILE_OR_FOLDER, or --data=NAME"
        )
    beside = path.with_name(f"{path.name}-{args.format}")
    out = pathlib.Path(args.out).expanduser() if args.out else beside
    exp, step, at, saved = cli.loaded(args, overrides)
    model = writing.model_of(exp, saved)
    about = export_facts.described(exp, folder, step, at, model)
    try:
        facts = writing.export_run(
            args.format, kind, exp, model, asked, about, args.images, out
        )
    except writing.DiffersError as error:
        print(error)
        return DIFFERS
    found = facts["verified"]
    opset = f" opset={facts['opset']}" if args.format == "onnx" else ""
    print(
        f"done: step={step} at={at} format={args.format}{opset} n={found['images']}"
        f" largest_difference={found['largest_difference']:.2g} in {out}"
    )
    if args.push:
        where, seen = pushing.push(out, args.push, args.public)
        print(f"pushed: {where} (a {seen} repository)")
    return DONE


def parser() -> cli.Parser:
    """Returns the parser of the command's flags."""
    listed = "\n".join(f"  {name:12}{each.ABOUT}" for name, each in formats.FORMATS.items())
    parser = cli.Parser(
        "export",
        "Write a trained run for others, with model.json and an example of its use.",
        f"formats:\n{listed}\n\n{cli.OF_A_RUN}",
        bare="--workdir",
    )
    cli.add_run(parser)
    add = parser.add_argument
    add("--format", default="safetensors", help="default: safetensors")
    add("--out", default="", metavar="DIR", help="new folder; default: beside the run's")
    add(
        "--images",
        nargs="+",
        default=[],
        metavar="IMAGE_OR_FOLDER",
        help="what it is checked on; default: examples of the run's data",
    )
    add(
        "--names",
        default="",
        help="of safetensors: whose names the arrays get: torchvision, timm, ...; default:"
        " the first that has the model",
    )
    add("--batch_size", default="1", help="of tflite: images a batch (default 1)")
    add(
        "--opset",
        default="",
        help=f"of onnx: {OPSETS[0]} to {OPSETS[-1]}; default: the least that has the model",
    )
    add(
        "--license",
        default="unknown",
        help="of hub: its identifier in the model card, as apache-2.0; default: unknown",
    )
    add(
        "--push",
        default="",
        metavar="ORG/NAME",
        help="of hub: the repository, made private",
    )
    add("--public", action="store_true", help="of --push: a public repository")
    return parser


# Flags of one format.
_FLAGS = {
    "--names": "safetensors",
    "--batch_size": "tflite",
    "--opset": "onnx",
    "--license": "hub",
    "--push": "hub",
    "--public": "hub",
}


def _license(text: str) -> str:
    """Returns --license; raises `InputError` unless it has the form of an identifier."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", text, re.ASCII):
        raise InputError(f"--license={text} must be an identifier, as apache-2.0 or mit")
    return text


def _opset(text: str) -> int:
    """Returns the number of --opset, or 0 for ""; raises `InputError` for another text."""
    if text and text not in map(str, OPSETS):
        raise InputError(
            f"--opset={text} must be {OPSETS[0]} to {OPSETS[-1]}; leave it out for the"
            " least that has the model"
        )
    return int(text or 0)
