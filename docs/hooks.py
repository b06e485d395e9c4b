"""Makes the reference's pages from the program's own tables, for MkDocs and the tests.

A page holds ``<!-- generated: NAME -->``, which MkDocs replaces by what `GENERATED[NAME]`
returns.
"""

import importlib
import inspect
import json
import os
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from jaxcls import augment, commands, models
from jaxcls.config.knobs import KNOBS
from jaxcls.data import decode
from jaxcls.evaluation import attacks, views
from jaxcls.learning import losses, metrics, optimizers, schedules, wrappers

# {heading: (the config key or flag, its table)}
TABLES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "Models": ("model.name", models.MODELS),
    "Host ops": ("data.train_ops, data.eval_ops", decode.HOST_OPS),
    "Random host ops": ("data.train_ops", decode.RANDOM_HOST_OPS),
    "Augmentations": ("augment", augment.AUGMENTATIONS),
    "Mixing": ("mix", augment.MIXES),
    "Normalisations": ("normalize", augment.NORMALIZATIONS),
    "Losses": ("loss.name", losses.LOSSES),
    "Optimizers": ("optim.name", optimizers.OPTIMIZERS),
    "Wrappers of an optimizer": ("optim.wrapper", wrappers.WRAPPERS),
    "Schedules": ("optim.schedule", schedules.SCHEDULES),
    "Metrics": ("eval.metrics", metrics.METRICS),
    "Views": ("evaluate --tta", views.VIEWS),
    "Attacks": ("evaluate --attacks", attacks.ATTACKS),
}
# What the program gives, and no config.
_GIVEN = {"decay", "optimizer", "peak", "span", "num_classes", "dtype", "parent", "name"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns a page with its markers replaced; MkDocs calls it for each."""
    return re.sub("<!-- generated: (\\w+) -->", lambda m: GENERATED[m[1]](), markdown)


def commands_page() -> str:
    """Returns the help of every verb; of train without the keys, which have a page."""
    os.environ["COLUMNS"] = "92"
    parts = []
    for verb, about in commands.VERBS.items():
        parser = importlib.import_module(f"jaxcls.commands.{verb}").parser()
        text = parser.format_help().partition("\nconfig keys [default]")[0]
        parts.append(f"## {verb}\n\n{about}\n\n```\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def keys_page() -> str:
    """Returns a table of the config keys for each group of them."""
    groups: dict[str, list[str]] = {}
    for key, knob in KNOBS.items():
        group = key.rpartition(".")[0] or "The run"
        mark = " *" if knob.identity else ""
        about = re.sub(r"([\[*_|])", r"\\\1", knob.about).replace("<", "&lt;")
        row = f"| `{key}`{mark} | `{json.dumps(knob.default)}` | {about} |"
        groups.setdefault(group, []).append(row)
    head = "| key | default | what it is |\n|---|---|---|\n"
    return "\n\n".join(f"## {g}\n\n{head}" + "\n".join(rows) for g, rows in groups.items())


def entries_page() -> str:
    """Returns every entry of every table with its options, and each docstring once."""
    parts = []
    for heading, (key, table) in TABLES.items():
        parts.append(f"## {heading}\n\nFor `{key}`.\n")
        described: dict[str, list[str]] = {}
        for name, entry in sorted(table.items()):
            described.setdefault(_about(entry), []).append(f"`{name}{_options(entry)}`")
        for about, calls in described.items():
            text = textwrap.indent(about, "    ").strip()
            parts.append("\n".join(calls) + f"\n\n:   {text}\n")
    return "\n".join(parts)


def _options(entry: Callable[..., Any]) -> str:
    """Returns an entry's options as a call has them: ``(alpha=0.2)``."""
    options = [
        name if p.default is p.empty else f"{name}={_value(p.default)}"
        for name, p in inspect.signature(entry).parameters.items()
        if name not in _GIVEN and p.kind is not p.VAR_POSITIONAL
    ]
    return f"({', '.join(options)})" if options else ""


def _value(default: Any) -> str:
    return default.__name__ if callable(default) else repr(default)


def _about(entry: Any) -> str:
    """Returns an entry's docstring; of a model's variant, that of its family."""
    while hasattr(entry, "func"):
        entry = entry.func
    text = inspect.getdoc(entry) or ""
    if text.startswith(f"{getattr(entry, '__name__', '')}("):  # What a dataclass makes up.
        text = inspect.getmodule(entry).__doc__ or ""
    return text.replace("``", "`")


GENERATED = {"commands": commands_page, "keys": keys_page, "entries": entries_page}
