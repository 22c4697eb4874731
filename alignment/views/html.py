"""The report as one HTML page: style, script, charting library and figures are all in it, and it asks for nothing else.

What can be said without a script (verdicts, roots, findings, what the verdict rests on) is in the page itself; trees, tensors
and charts are drawn by `html/report.js` from the same figures as the JSON report has, when they are looked at.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import orjson

from alignment.report import Report, StageResult, TensorResult, TwinResult
from alignment.trees import SEVERITY, Node, nodes
from alignment.views.json import to_dict
from alignment.views.terminal import MARKS as VERDICTS

FOLDER = Path(__file__).with_name("html")
# What is waived is marked so, whatever its verdict.
MARKS = {**VERDICTS, "waived": "–"}
# What is drawn of a finding's proof: a relative difference between rounding in float64 and beyond all measure.
SMALLEST, LARGEST = 1e-17, 1e1
# Characters that could end a script, or a line of one, and how JSON may write them.
_ESCAPED = {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def to_html(report: Report) -> bytes:
    """The page, UTF-8. No name or text of the report can become markup or script in it."""
    return render(
        "report.html",
        "report.js",
        _data(report),
        report=report,
        verdicts=MARKS,
        counts={verdict: sum(twin.verdict == verdict for twin in report.twins) for verdict in reversed(SEVERITY)},
    )


def render(template: str, script: str, data: Any, **values: Any) -> bytes:
    """A page, UTF-8, with all that it needs in it.

    template, script: files of `html/`; the script finds `data` under the id ``"data"``, and what `html/charts.js` offers.
    values: for the template.
    """
    library = _text("echarts.min.js").strip()
    own = f"{_text('charts.js')}{_text(script)}".strip()
    page = _template(template).render(
        **values,
        data=_script_data(data),
        style=_text("report.css"),
        library=library,
        script=own,
        hashes=" ".join(f"'{_hash(source)}'" for source in (library, own)),
    )
    return page.encode()


@functools.cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "counting": _counting,
        "figure": _figure,
        "share": _share,
        "name": _name,
        "percent": _percent,
    }
    environment.tests["many"] = lambda items: len(items) > 1
    environment.globals |= {"closest": _closest, "links": _links}
    return environment.get_template(name)


@functools.cache
def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """What the page's policy knows a script by: no other one runs."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _script_data(data: Any) -> str:
    text = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    return text.translate({ord(character): escape for character, escape in _ESCAPED.items()})


def _data(report: Report) -> dict[str, Any]:
    """What the script draws: the JSON report's own entries, without what is null, and where in the trees each belongs."""
    written = to_dict(report)["twins"]
    return {
        "verdicts": MARKS,
        "severity": (SEVERITY[0], "waived", *SEVERITY[1:]),
        "twins": [_twin(twin, entry) for twin, entry in zip(report.twins, written, strict=True)],
    }


def _twin(twin: TwinResult, written: Mapping[str, Any]) -> dict[str, Any]:
    tensors = [
        {**_lean(tensor), "stage": number}
        for number, stage in enumerate(written["stages"])
        for tensor in stage["tensors"]
    ]
    trees = {side: nodes(twin, side) for side in ("reference", "candidate")}
    return {
        "name": twin.twin,
        "stages": [{"step": stage.step, "name": stage.name} for stage in twin.stages],
        "tensors": tensors,
        "effect": written["effect"],
        "trajectories": written["trajectories"],
        "trees": {side: _tree(tree, trees[_other(side)]) for side, tree in trees.items()},
    }


def _lean(tensor: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in tensor.items() if value is not None and value != []}
    # JSON has no word for an undefined strain: beyond all measure.
    if tensor["waived"] is not None:
        kept["verdict"] = "waived"
    return {**kept, "strain": tensor["strain"] if math.isfinite(tensor["strain"]) else None}


def _tree(tree: tuple[Node, ...], other: tuple[Node, ...]) -> list[dict[str, Any]]:
    places = {node.module.path: place for place, node in enumerate(other)}
    return [
        {
            "path": node.module.path,
            "kind": node.module.kind,
            "site": node.module.site,
            "parent": node.parent,
            "other": None if node.module.counterpart is None else places.get(node.module.counterpart),
            "tensors": node.tensors,
            "verdict": node.verdict,
            "below": node.below,
            "roots": node.roots,
        }
        for node in tree
    ]


def _other(side: str) -> str:
    return "candidate" if side == "reference" else "reference"


# ------------------------------------------------------------------------------------------------------------- template


def _figure(value: float | None, digits: int = 2) -> str:
    return "" if value is None else "∞" if math.isinf(value) else f"{value:.{digits}g}"


def _counting(tensors: Iterable[TensorResult]) -> list[TensorResult]:
    """Those that are not waived."""
    return [tensor for tensor in tensors if tensor.waived is None]


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _share(value: float | None) -> float:
    """How far a relative difference lies between the smallest and the largest drawn, on a logarithmic scale: percent."""
    place = math.log10(min(max(value or 0.0, SMALLEST), LARGEST) / SMALLEST) / math.log10(LARGEST / SMALLEST)
    return round(100 * place, 1)


def _name(tensor: Any) -> str:
    one, two = tensor.reference_name, tensor.candidate_name
    return f"{one} → {two}" if one and two and one != two else tensor.name


def _closest(stage: StageResult) -> str:
    """How near an aligned stage's nearest tensor came to what is allowed."""
    strains = [tensor.strain for tensor in _counting(stage.tensors) if tensor.allowed and tensor.strain]
    return f"at most {max(strains):.0%} of what is allowed" if strains else ""


def _links(twin: TwinResult) -> dict[str, int]:
    """What findings call a root -> its place among the twin's tensors."""
    return {f"{tensor.record} {tensor.name}": number for number, tensor in reversed(list(enumerate(twin.tensors)))}
