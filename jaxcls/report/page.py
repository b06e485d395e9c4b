"""The whole page, as one self-contained file."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcls.report import curves, images, robust, studies, tables
from jaxcls.report.contents import Run, Scored, Study
from jaxcls.report.markup import Markup, details, group, join, note, section, swatch, tag
from jaxcls.report.style import SCRIPT, STYLE


def page(
    runs: Sequence[Run], defaults: Mapping[str, Any], found: Sequence[Study] = ()
) -> str:
    """Returns the HTML of a report on runs and studies.

    defaults: {config key: default}. found: the studies. Equal arguments give equal text.
    The page loads no other file; its content security policy forbids that.
    """
    names = [*(each.name for each in found), *(run.name for run in runs)]
    title = f"Report: {', '.join(names)}"
    main = [
        tag("h1", title),
        *(studies.study(each, number, defaults) for number, each in enumerate(found)),
        *(_of_runs(runs, defaults) if runs else []),
    ]
    body = tag("body", tag("main", *main), tag("script", Markup(SCRIPT)))
    return (
        "<!doctype html>\n"
        + tag("html", tag("head", *_head(title)), body, lang="en")
        + "\n"
    )


def _of_runs(runs: Sequence[Run], defaults: Mapping[str, Any]) -> list[Markup]:
    """Returns the comparison of the runs, then a section for each run."""
    between = "Configs" if len(runs) > 1 else "Config"
    return [
        section("Runs", tables.overview(runs)),
        section("Learning curves", curves.learning(runs)),
        section(between, tables.differences(runs, defaults)),
        *(_of_run(run, number, len(runs)) for number, run in enumerate(runs)),
    ]


def _head(title: str) -> list[Markup]:
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline';"
        f" script-src 'sha256-{digest}'"
    )
    return [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    ]


def _of_run(run: Run, number: int, runs: int) -> Markup:
    """Returns the section of one run; a note says why something is missing."""
    side = image_side(runs)
    scored, names = run.scored, run.class_names
    parts: list[Markup] = [_why(run, "scores")]
    if scored:
        found = scored.assessed
        mistakes = images.grid(scored.mistakes, side)
        clean = found.headline["top1"]
        told = "Below each what it is taken for, then what it is, with their probabilities."
        mistakes = join([note(told), mistakes]) if mistakes else note("There is none.")
        parts = [
            note(_about(scored)),
            group(
                [
                    section("Figures", tables.headline(found), level=3),
                    section("Confusions", tables.confusions(found.matrix, names), level=3),
                    section("Classes", tables.by_class(found, names), level=3),
                    section("Calibration", *_calibration(scored, number), level=3),
                ],
                "pair",
            ),
            section(
                "Robustness",
                robust.robustness(scored.robustness, clean, number),
                level=3,
            ),
            section("Its most confident mistakes", mistakes, level=3),
        ]
    looked = f"Where it looks ({run.looked_by})" if run.looked_by else "Where it looks"
    about = _ABOUT.get(run.looked_by, "") if run.looks else ""
    parts += [
        section(
            looked,
            note(about) if about else "",
            images.looks(run.looks, side) or _why(run, "looks"),
            level=3,
        ),
        section(
            "Training images as it sees them",
            images.grid(run.trained_on, side) or _why(run, "training images"),
            level=3,
        ),
        details("Where it comes from", tables.provenance(run)),
    ]
    return section(join([swatch(number), run.name]), *parts, id_=f"run{number + 1}")


_ABOUT = {
    "Grad-CAM": "Bright is what speaks for the class below, and grey is what does not;"
    " each image has a scale of its own (arXiv:1610.02391).",
    "attention rollout": "Bright is what reaches the output through the attention of all"
    " layers, whatever the class; each image has a scale of its own (arXiv:2005.00928).",
}


def _about(found: Scored) -> str:
    averaged = ", its averaged weights" if found.weights == "ema" else ""
    text = (
        f"All {found.assessed.n} examples of {found.split}, by the checkpoint of step"
        f" {found.step} ({found.at}{averaged})."
    )
    if found.assessed.non_finite:
        text += f" {found.assessed.non_finite} of them have non-finite logits."
    return text


def _calibration(found: Scored, number: int) -> list[Markup]:
    fit = found.assessed.calibration
    error = f"ECE {tables.figure(fit.before)}"
    text = f"No temperature: {fit.fitted_on}."
    if not math.isnan(fit.temperature):
        text = (
            f"Logits divided by a temperature of {fit.temperature:.3f} have an ECE of"
            f" {tables.figure(fit.after)}. It was fitted on {fit.fitted_on}."
        )
    chart = curves.reliability(fit.reliability, error, f"reliability{number + 1}")
    return [chart, note(text)]


def _why(run: Run, part: str) -> Markup:
    return note(run.missing[part]) if part in run.missing else Markup("")


def image_side(runs: int) -> int:
    """Returns the largest side of a picture in pixels; smaller for many runs."""
    return 112 if runs <= 4 else 64
