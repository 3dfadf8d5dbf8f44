"""A model card: what a model is, on what it was judged, how good it is and where it fails, on one page of Markdown.

After Mitchell et al., Model Cards for Model Reporting, 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelyard.evaluate.config import EvaluateConfig
from modelyard.model_package import ModelPackage

UNSTATED = "not stated"
SHOWN_COLUMNS = 40
WORST_SLICES = 5
IMPORTANT_COLUMNS = 5


def model_card(
    verdict: Mapping[str, Any],
    metrics: Mapping[str, Any],
    explained: Mapping[str, Any] | None,
    about: Sequence[str],
    config: EvaluateConfig,
) -> str:
    """The card for `verdict.json`, `metrics.json` and, where there are any, `explanations.json` of a candidate.

    Args:
        about: what the model is, as sentences.
    """
    candidate = metrics["candidate"]
    sections = [
        ("Model", [
            f"- artifact `{verdict['inputs']['candidate']}`, form `{verdict['form']}`",
            *(f"- {sentence}" for sentence in about),
            f"- licence: {config.licence or UNSTATED}",
            f"- intended use: {config.intended_use or UNSTATED}",
        ]),
        ("Data", [f"- data set `{verdict['inputs']['dataset']}`; judged on the {candidate['rows']:,} rows of its test split"]),
        ("Scores", _scores(verdict, candidate)),
        ("What it looks at", _reasons(explained) or ["- nobody looked: `evaluate.explained_rows` is 0"]),
        ("Where it fails", _limits(verdict) or ["- nothing was looked at apart: name columns in `evaluate.slices`"]),
        ("Verdict", [f"- {_outcome(verdict)}", *(f"- {reason}" for reason in verdict["reasons"])]),
    ]  # fmt: skip
    parts = [f"## {title}\n\n" + "\n".join(lines) for title, lines in sections]
    return "\n\n".join([f"# Model card: {verdict['subject']}", *parts]) + "\n"


def about_package(package: ModelPackage) -> list[str]:
    """What a package is: its forms, what it predicts, and from which columns."""
    target, columns = package.spec.target, package.transform.columns
    shown = ", ".join(columns[:SHOWN_COLUMNS]) + (
        f" and {len(columns) - SHOWN_COLUMNS} more" if columns[SHOWN_COLUMNS:] else ""
    )
    classes = f": {', '.join(map(str, target.classes[:40]))}" if target.classes else ""
    return [
        f"has the forms {', '.join(package.spec.forms)}",
        f"predicts `{target.column}` ({target.task}){classes}",
        f"from {len(columns)} columns: {shown}",
    ]


def _scores(verdict: Mapping[str, Any], candidate: Mapping[str, Any]) -> list[str]:
    lines = [f"- {name} {value:.4f}" for name, value in candidate.items() if isinstance(value, float)]
    if sure := verdict["scores"].get("candidate"):
        percent = f"{100 * sure['confidence']:g} %"
        lines.append(f"- {percent} interval of {verdict['metric']}: {sure['low']:.4f} to {sure['high']:.4f}")
    return lines


def _reasons(explained: Mapping[str, Any] | None) -> list[str]:
    if not explained:
        return []
    if "texts" in explained:
        return [f"- {_words(one)}" for one in explained["texts"][:IMPORTANT_COLUMNS]]
    if explained["importance"] is None:
        return [f"- {len(explained['columns'])} columns, too many to exchange one by one"]
    ranked = sorted(zip(explained["importance"], explained["columns"], strict=True), reverse=True)[:IMPORTANT_COLUMNS]
    return [f"- `{column}`: the score loses {loss:.4f} when it is exchanged among the rows" for loss, column in ranked]


def _words(one: Mapping[str, Any]) -> str:
    """The words of one text that spoke most for its answer."""
    ranked = sorted(one["parts"], key=lambda part: -part["weight"])[:IMPORTANT_COLUMNS]
    words = ", ".join(f"`{part['text'].strip()}`" for part in ranked if part["weight"] > 0 and part["text"].strip())
    return f"`{one['answer']}`" + (f" (truth `{one['truth']}`)" if one["truth"] != one["answer"] else "") + f": {words}"


def _limits(verdict: Mapping[str, Any]) -> list[str]:
    lines = [f"- {note}" for note in verdict["notes"]]
    lines += [
        f"- {one['name']}: {verdict['metric']} {one['score']['value']:.4f} on {one['rows']:,} rows"
        for one in verdict["slices"][:WORST_SLICES]
    ]
    lines += [
        f"- {verdict['metric']} {_number(scores['candidate'])} {trouble}: {name}"
        for key, trouble in (("disturbed", "when disturbed by"), ("attacked", "under attack by"))
        for name, scores in verdict[key].items()
        if name != "undisturbed" and "candidate" in scores
    ]
    return lines


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _outcome(verdict: Mapping[str, Any]) -> str:
    if verdict["passed"]:
        return "passed every check"
    override = verdict["override"]
    return f"let through by {override['by']}: {override['reason']}" if override else "refused"
