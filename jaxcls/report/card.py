"""A reproducibility card: one page of answers on an experiment, from its folder alone.

The questions are those of the NeurIPS checklist on experiments. What no folder can know
comes from a TOML file of answers, else it is "not stated".
"""

import math
import pathlib
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxcls.config.knobs import KNOBS
from jaxcls.errors import InputError, did_you_mean, printable
from jaxcls.evaluation import intervals
from jaxcls.runs import cost, records
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import folder as study_folder
from jaxcls.studies.table import PLACES

NOT_STATED = "not stated"
# {key of the answers: its question}, of what no folder can know.
ASKED = {
    "how_chosen": "How were hyper-parameters chosen, beyond what is above?",
    "data_source": "Where are the data from, and how does one get them?",
    "data_license": "Under which licence are the data?",
    "code_source": "Where is the code, with its own changes?",
    "code_license": "Under which licence is the code?",
    "consent": "Did people in the data consent, and was a review board asked?",
    "intended_use": "What is the model meant for, and what not?",
    "limitations": "What are the limits of the claim?",
    "other_compute": "What was computed besides, such as failed or preliminary runs?",
}
# Answers are a page's texts: a larger file is another file.
_MOST_BYTES = 2**20
# The keys of a final record that are no figures.
_FACTS = ("step", "kind", "at", "best_step", "split", "n")
# Metrics that are a share of examples.
_HITS = re.compile(r"(?:ema_)?top\d+")


class Section(NamedTuple):
    """A part of a card: its title, its question, and the answers by what they are of."""

    title: str
    question: str
    answers: dict[str, Any]


class Card(NamedTuple):
    """A card: "run" or "study", the name of its folder, and its sections."""

    of: str
    name: str
    sections: list[Section]


class _Part(NamedTuple):
    """A run of a card: its folder, the content of config.json, and its starts."""

    folder: Workdir
    saved: dict[str, Any]
    starts: list[dict[str, Any]]


def read(path: str, answers: Mapping[str, str]) -> Card:
    """Returns the card of the folder of a run or a study.

    answers: {key of ASKED: text}. Raises `InputError` for a folder of neither, and for
    files that are not as they were written.
    """
    folder = Workdir(path)
    is_study = (folder.path / study_folder.RESULT).is_file()
    sections = _of_study(folder.path) if is_study else _of_run(folder)
    stated = {text: answers.get(key, NOT_STATED) for key, text in ASKED.items()}
    sections.append(Section("Beyond the folder", "What can its authors alone say?", stated))
    return Card("study" if is_study else "run", folder.path.name, sections)


def read_answers(file: str) -> dict[str, str]:
    """Returns {key of ASKED: text} of a TOML file; raises `InputError` for another file."""
    try:
        with open(file, "rb") as stream:
            text = stream.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        found = tomllib.loads(text.decode())
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(
            f"--answers={file} is no TOML file of answers ({why}); write lines such as"
            ' data_license = "CC BY 4.0"'
        ) from None
    for key, value in found.items():
        if key not in ASKED:
            raise InputError(
                f"--answers={file} answers {key!r}{did_you_mean(key, ASKED)}, and a card"
                f" asks {', '.join(ASKED)}"
            )
        if not isinstance(value, str):
            raise InputError(
                f"--answers={file}: {key}={repr(value)[:80]} must be a text; write"
                f' {key} = "..."'
            )
    return found


def _of_run(folder: Workdir) -> list[Section]:
    part = _part(folder)
    found = records.read(folder.metrics)
    final = found[-1] if found and found[-1]["kind"] == "final" else None
    if final:
        _check_sealed(part, final["step"])
    results = _scores(final) if final else {"state": "the run has not ended"}
    made = [f"jaxcls reproduce --workdir={shlex.quote(folder.path.name)}"]
    return [
        Section("Results", "What is claimed, with which error bars?", results),
        Section("Seeds", "Which random numbers vary?", _seeds(part.saved["config"])),
        *_common([part], part.saved["config"], _chosen_by_config([part])),
        _verified([part], made),
    ]


def _of_study(path: pathlib.Path) -> list[Section]:
    result, plan = study_folder.read_result(path, "--card"), study_folder.read_plan(path)
    keys = [(cell["name"], run["seed"]) for cell in result["cells"] for run in cell["runs"]]
    folders = [study_folder.run_folder(path, *key) for key in keys]
    parts = [_part(each) for each in folders if (each.path / "config.json").is_file()]
    seeds = [run["seed"] for run in result["cells"][0]["runs"]]
    first = study_folder.run_folder(pathlib.Path(path.name), *keys[0]).given
    made = [
        f"jaxcls reproduce --workdir={shlex.quote(first)}",
        "jaxcls study --verify=CONFIG.py, of a recipe that --record has recorded",
    ]
    vary = {
        cell["vary"] if cell["vary"] == "all" else ", ".join(cell["vary"])
        for cell in result["cells"]
    }
    varied = {"seeds": seeds, "a seed varies": sorted(vary)}
    config = plan.config if plan else {}
    if not plan and parts:
        config = parts[0].saved["config"]
    return [
        Section("Results", "What is claimed, with which error bars?", _figures(result)),
        Section("Seeds", "Which random numbers vary?", varied),
        *_common(parts, config, _chosen_by_study(result)),
        _verified(parts, made),
    ]


def _part(folder: Workdir) -> _Part:
    saved = folder.read()
    folder.check_config()
    return _Part(folder, saved, folder.starts())


def _check_sealed(part: _Part, step: int) -> None:
    """Raises `InputError` unless the records are those that the last start sealed."""
    sealed = part.starts[-1].get("records", {}) if part.starts else {}
    for path in (part.folder.metrics, part.folder.digests):
        text = records.up_to(path, step)
        records.check_sealed(path, text, sealed.get(path.stem, ""), "manifest.json")


def _scores(final: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the figures of a final record; a share of hits has Wilson's interval."""
    n = final.get("n", 0)
    found: dict[str, Any] = {
        "checkpoint": f"{final['at']}, step {final.get('best_step', final['step'])}",
        "split": final.get("split", "none"),
        "examples": n,
    }
    for name in [key for key in final if key not in _FACTS]:
        value = final[name]
        found[name] = "not finite" if value is None else value
        if n and value is not None and _HITS.fullmatch(name) and 0 <= value <= 1:
            span = intervals.proportion(round(value * n), n)
            found[f"{name}, 95 % interval"] = [span.low, span.high]
    found["error bars"] = (
        "Wilson's intervals over the examples of the split, of one run: they do not cover"
        " how much another seed changes"
    )
    return found


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the figures of each cell of a study at the place of its headline."""
    place, metric = result["headline"], result["metric"]
    found: dict[str, Any] = {
        **{"metric": metric, "scored on": PLACES.get(place, "nothing yet")},
        "runs": {key: result[key] for key in ("done", "diverged", "missing")},
    }
    for cell in result["cells"]:
        known = cell["figures"].get(place, {}).get(metric)
        if known:
            found[f"cell {cell['name']}"] = {
                **{key: known[key] for key in ("n", "mean", "deviation")},
                "interval": [known["t"]["low"], known["t"]["high"]],
            }
    for name, one in result["comparisons"].get(place, {}).items():
        found[f"{name} against {result['baseline']}"] = one["words"]
    found["error bars"] = (
        "Student's 95 % interval of the mean over seeds, which assumes normal results; the"
        " deviation is that of a sample, with n - 1"
    )
    return found


def _seeds(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the seed of a run, and those of streams that have their own."""
    own = {k: v for k, v in config.items() if k.startswith("seeds.") and v != _default(k)}
    return {"seed": config.get("seed", _default("seed")), **own}


def _default(key: str) -> Any:
    return KNOBS[key].default if key in KNOBS else None


def _common(
    parts: Sequence[_Part], config: Mapping[str, Any], chosen: dict[str, Any]
) -> list[Section]:
    """Returns the sections on data, hyper-parameters, compute and code."""
    ours = [part.saved["implied"] for part in parts]
    facts = [each.get("facts", {}) for each in ours]
    splits = {f"data.{k}": config.get(f"data.{k}", "") for k in ("train", "eval", "test")}
    data = {
        **{key: _each(fact.get(key) for fact in facts) for key in ("name", "version")},
        "fingerprint": _each(fact.get("fingerprint") or "unknown" for fact in facts),
        "examples of each split": _each(fact.get("splits") for fact in facts),
        **splits,
        "examples used": _each(each.get("examples") for each in ours),
        "classes": _each(fact.get("num_classes") for fact in facts),
        "names of classes": _each(fact.get("class_names") for fact in facts),
        "initial weights": _each(each.get("weights") or "random" for each in ours),
    }
    known = {k: v for k, v in config.items() if k in KNOBS and KNOBS[k].identity}
    apart = {k: v for k, v in known.items() if v != _default(k)}
    steps = {"steps": _each(each.get("steps") for each in ours)}
    return [
        Section("Data", "Which data, and which splits of them?", data),
        Section("Choice of hyper-parameters", "How were they chosen?", chosen),
        Section("Hyper-parameters", "Which are not the defaults?", {**steps, **apart}),
        Section("Compute", "On what, how long, and with how much memory?", _compute(parts)),
        Section("Code", "Which code and which versions?", _code(parts)),
    ]


def _each(values: Iterable[Any]) -> Any:
    """Returns the one value of all runs, or a list of the different ones; None of none."""
    found: list[Any] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found[0] if len(found) == 1 else found or None


def _chosen_by_config(parts: Sequence[_Part]) -> dict[str, Any]:
    commands = _each(start.get("command") for part in parts for start in part.starts)
    return {"a config, as this command names it": commands}


def _chosen_by_study(result: Mapping[str, Any]) -> dict[str, Any]:
    keys = dict.fromkeys(key for cell in result["cells"] for key in cell["overrides"])
    tried = {
        key: list(dict.fromkeys(cell["overrides"].get(key, "") for cell in result["cells"]))
        for key in keys
    }
    selected = result["selected"]
    return {
        "cells tried": len(result["cells"]),
        **{f"values of {key}": values for key, values in tried.items()},
        "selected": selected["cell"] if selected else None,
        "selected by": f"mean {selected['metric']} on data.eval" if selected else None,
    }


def _compute(parts: Sequence[_Part]) -> dict[str, Any]:
    taken = [cost.of_run(p.starts, records.read(p.folder.timing)) for p in parts]
    whole = cost.total(taken)
    return {
        "device-seconds of all starts": whole.seconds,
        "peak memory in bytes": whole.peaks,
        "runs": len(taken),
        "starts": whole.starts,
        "counted": whole.unsure or ("every start, to its end" if whole.starts else None),
        "devices of the last start": _each(_devices(part) for part in parts),
        "not counted": "evaluations, reports and runs of other folders",
    }


def _devices(part: _Part) -> Any:
    devices = part.starts[-1].get("devices") if part.starts else None
    return devices and {kind: devices.count(kind) for kind in dict.fromkeys(devices)}


def _code(parts: Sequence[_Part]) -> dict[str, Any]:
    starts = [start for part in parts for start in part.starts]
    keys = ("jaxcls", "commit", "code", "numerics", "python", "platform", "xla_flags")
    packages = dict.fromkeys(name for start in starts for name in start.get("versions", {}))
    return {
        **{key: _each(start.get(key) for start in starts) for key in keys},
        "plug-ins": _each(start.get("plugins") for start in starts),
        **{
            name: _each(start.get("versions", {}).get(name) for start in starts)
            for name in packages
        },
    }


def _verified(parts: Sequence[_Part], commands: list[str]) -> Section:
    last = [records.read(part.folder.digests)[-1:] for part in parts]
    known = [{"step": r["step"], "digest": r["digest"]} for each in last for r in each]
    what: dict[str, Any] = {"commands": commands}
    if len(parts) == 1:
        what["last digest of the state"] = known[0] if known else None
    return Section("Verification", "How does one check it?", what)


def as_json(card: Card) -> dict[str, Any]:
    """Returns a card as plain values for JSON."""
    sections = {
        title: {"question": question, "answers": answers}
        for title, question, answers in card.sections
    }
    return {"format": 1, "of": card.of, "name": card.name, "sections": sections}


def as_markdown(card: Card) -> str:
    """Returns a card as one page of Markdown; no value breaks out of its cell."""
    lines = [f"# Reproducibility card of the {card.of} {_text(card.name)}", ""]
    for title, question, answers in card.sections:
        lines += [f"## {title}", "", question, "", "| what | value |", "|---|---|"]
        rows = (f"| {_text(key)} | {_text(_plain(v))} |" for key, v in answers.items())
        lines += [*rows, ""]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """Returns a value as text; a number has six digits."""
    if value is None:
        return "not recorded"
    if value in ("", [], {}):
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "not finite"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)


# What Markdown or HTML may take for more than a letter.
_ACTIVE = re.compile(r"([\\`*_\[\]<>|~$&])")


def _text(value: str) -> str:
    """Returns a text as a line of Markdown that shows it as it is."""
    line = printable(" ".join(value.split()))
    # Half of a surrogate pair is no UTF-8.
    return _ACTIVE.sub(r"\\\1", line.encode(errors="backslashreplace").decode())
