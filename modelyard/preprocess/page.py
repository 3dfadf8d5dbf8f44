"""The report of a data set as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 2rem } td, th { padding: .2rem .8rem; text-align: left }
th { border-bottom: 1px solid #888 } td { border-bottom: 1px solid #eee } td.number { text-align: right }
svg { display: block } rect { fill: #4878a8 }
"""
BAR_WIDTH, BAR_HEIGHT = 6, 32


def report_page(title: str, report: dict[str, Any], changes: Sequence[dict[str, Any]] = ()) -> str:
    """HTML of a `report.json`, with what changed since the data set before."""
    rows = report["rows"]
    sums = f"{rows['kept']:,} kept + {rows['rejected']:,} rejected + {rows['duplicates']:,} duplicates"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{rows['read']:,} rows read = {sums}</p>",
        "<h2>Rejected</h2>",
        _table(
            ("column", "reason", "rows"),
            ((line["column"], line["reason"], line["rows"]) for line in report["rejected"]),
        ),
        "<h2>Classes</h2>",
        _classes(report["splits"]),
        "<h2>Columns</h2>",
        _columns(report["profile"]),
    ]
    if report.get("label_functions"):
        parts += ["<h2>Labelling functions</h2>", _votes(report["label_functions"])]
    if "near_duplicates" in report:
        parts += _near(report["near_duplicates"])
    if "label_suspects" in report:
        told = report["label_suspects"]
        said = (
            f"{told['suspected']:,} of {told['checked']:,} training rows that were looked at; the most doubtful first."
        )
        facts = ("row", "given", "chance_given", "likely", "chance_likely")
        lines = ([line[fact] for fact in facts] for line in told["rows"])
        parts += ["<h2>Labels that are probably wrong</h2>", f"<p>{said}</p>"]
        parts.append(_table(("training row", "label", "its chance", "probably", "its chance"), lines))
    if changes:
        lines = ((line["what"], line["before"], line["now"]) for line in changes)
        parts += ["<h2>Since the data set before</h2>", _table(("what", "before", "now"), lines)]
    return f"<!doctype html><meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>{''.join(parts)}"


def _near(told: dict[str, Any]) -> list[str]:
    became = "counted as duplicates" if told["action"] == "drop" else "kept: no two of them lie in different splits"
    said = (
        f"{told['rows']:,} texts of {told['column']} share {told['threshold']:.0%} of their shingles or more with an earlier"
        f" one; {became}. Some of them:"
    )
    facts = ("similarity", "earlier_row", "earlier_text", "later_row", "later_text")
    lines = ([line[fact] for fact in facts] for line in told["examples"])
    head = ("similarity", "earlier row", "its text", "later row", "its text")
    return ["<h2>Nearly the same</h2>", f"<p>{escape(said)}</p>", _table(head, lines)]


def _classes(splits: dict[str, Any]) -> str:
    labels = list(dict.fromkeys(label for split in splits.values() for label in split["labels"]))
    total = ("all", *(split["rows"] for split in splits.values()))
    lines = [(label, *(split["labels"].get(label, 0) for split in splits.values())) for label in labels]
    return _table(("class", *splits), [*lines, total])


def _votes(functions: dict[str, dict[str, int]]) -> str:
    facts = ("covered", "overlaps", "conflicts", "wins")
    lines = (
        (
            name,
            *(f"{told[fact] / max(told['rows'], 1):.1%}" for fact in facts[:3]),
            f"{told['wins'] / max(told['covered'], 1):.1%}",
        )
        for name, told in functions.items()
    )
    return _table(
        ("function", "gives a label", "another does too", "another says otherwise", "is with the majority"), lines
    )


def _columns(profile: dict[str, Any]) -> str:
    lines = []
    for name, after in profile["after"].items():
        for when, told in (("before", profile["before"][name]), ("after", after)):
            cells = (name if when == "before" else "", when, told["kind"], told["rows"], told["nulls"])
            lines.append((*cells, _figure(told.get("low")), _figure(told.get("high")), _Raw(_distribution(told))))
    return _table(("column", "", "kind", "rows", "nulls", "lowest", "highest", "distribution"), lines)


class _Raw(str):
    """Markup of our own, not to be escaped."""

    __slots__ = ()


def _distribution(told: dict[str, Any]) -> str:
    if "frequent" in told:
        return escape(", ".join(f"{value} {share:.0%}" for value, share in told["frequent"][:5]))
    if characters := told.get("characters"):
        return f"{_bars(characters['shares'])}{characters['low']:.0f} to {characters['high']:.0f} characters"
    return _bars(told["histogram"]["shares"]) if "histogram" in told else ""


def _bars(shares: Sequence[float]) -> str:
    top = max(shares)
    bars = "".join(
        f"<rect x='{at * BAR_WIDTH}' y='{BAR_HEIGHT * (1 - share / top):.1f}' width='{BAR_WIDTH - 1}'"
        f" height='{BAR_HEIGHT * share / top:.1f}'><title>{share:.1%}</title></rect>"
        for at, share in enumerate(shares)
    )
    return f"<svg width='{BAR_WIDTH * len(shares)}' height='{BAR_HEIGHT}'>{bars}</svg>"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    body = "".join(f"<tr>{''.join(map(_cell, line))}</tr>" for line in lines)
    if not body:
        return "<p>None.</p>"
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, _Raw):
        return f"<td>{value}</td>"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"<td class='number'>{value:,}</td>"
    return f"<td>{escape(str(value))}</td>"
