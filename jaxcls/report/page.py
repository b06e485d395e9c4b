"""The whole page, as one self-contained file."""

import base64
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from jaxcls.report import charts, images, studies, tables
from jaxcls.report.contents import Run, Study
from jaxcls.studies import table
from jaxcls.training.meter import INPUT_BOUND

# Each works alone, on elements that read without it.
SCRIPTS = ("sort.js", "read.js", "open.js")


def page(
    runs: Sequence[Run], defaults: Mapping[str, Any], found: Sequence[Study] = ()
) -> str:
    """Returns the HTML of a report on runs and studies.

    defaults: {config key: default}. found: the studies. Equal arguments give equal text.
    The page loads no other file; its content security policy forbids that.
    """
    numbers = itertools.count(1)

    def own_ids(svg: str) -> str:
        """Returns SVG with ids that no other chart of the page has."""
        return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>chart{next(numbers)}-", svg)

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxcls.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"own_ids": own_ids, "source": images.source}
    environment.filters["overlay"] = images.overlay
    environment.globals |= {"COLOURS": charts.COLOURS, "tables": tables}
    environment.filters["thumbnail"] = images.thumbnail
    script = "".join(environment.get_template(name).render() for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = [*(study.name for study in found), *(run.name for run in runs)]
    return environment.get_template("page.html").render(
        title=f"Report: {', '.join(names)}",
        runs=runs,
        found=found,
        defaults=defaults,
        script=script,
        digest=digest,
        charts=charts,
        studies=studies,
        study_table=table,
        INPUT_BOUND=INPUT_BOUND,
    )
