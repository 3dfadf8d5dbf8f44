"""A verdict as one page of HTML, made from its JSON documents alone, so that the same verdict gives the same bytes."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from modelyard.evaluate.report_entities import ENTITIES, STYLES, label_bars, marked
from modelyard.evaluate.report_numbers import error_quantiles, in_short, meanings, scatter, short
from modelyard.evaluate.report_template import INTERVALS, TEMPLATE

WIDTH = 240.0  # of a bar, in the units of the drawing
ORIGIN_X, ORIGIN_Y, SIDE = 40.0, 250.0, 240.0  # of the calibration plot


def report(
    verdict: Mapping[str, Any],
    metrics: Mapping[str, Any],
    explained: Mapping[str, Any] | None = None,
    picture: bytes | None = None,
) -> str:
    """The page for `verdict.json`, `metrics.json` and, where there are any, `explanations.json` and its picture (PNG),
    as Python values. Opens offline, asks for nothing."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["short"] = short
    bars = environment.from_string(INTERVALS)
    page = environment.from_string(TEMPLATE)
    candidate = metrics["candidate"]
    is_released = verdict["passed"] or bool(verdict["override"])
    points, classifies = _calibration_points(candidate), "confusion" in candidate
    slices = verdict["slices"]
    score_names = [name for name, value in candidate.items() if isinstance(value, float)]
    return page.render(
        verdict=verdict,
        metrics=metrics,
        is_released=is_released,
        outcome="Passed" if verdict["passed"] else "Passed by override" if is_released else "Refused",
        intervals=lambda rows: Markup(bars.render(**rows)),  # noqa: S704 (rendered with escaping)
        score_rows=_bars((role, score, "", None) for role, score in verdict["scores"].items()),
        slice_rows=_bars(_slice(one) for one in slices if one["is_decisive"]),
        small_slice_rows=_bars(_slice(one) for one in slices if not one["is_decisive"]),
        in_short=in_short(verdict),
        bound=_bound,
        score_names=score_names,
        meanings=meanings(score_names, classifies=classifies),
        scatter=scatter(candidate.get("points", [])),
        error_quantiles=error_quantiles(candidate.get("points", [])),
        confusion_rows=_confusion_rows(candidate),
        class_rows=_class_rows(candidate),
        entities=_entities(environment, bars, candidate.get("entities")),
        explained=explained,
        picture=base64.b64encode(picture).decode() if picture else None,
        calibration_points=points,
        calibration_line=" ".join(f"{point['x']},{point['y']}" for point in points),
    )


def _entities(environment: Environment, bars: Template, told: Mapping[str, Any] | None) -> Markup:
    """What is said of spans of texts; nothing where there are none."""
    if told is None:
        return Markup()
    page = environment.from_string(ENTITIES).render(
        labels=told["labels"],
        label_rows=_bars(label_bars(told["labels"])),
        worst=[marked(one) for one in told["worst"]],
        styles=STYLES,
        intervals=lambda rows: Markup(bars.render(**rows)),  # noqa: S704 (rendered with escaping)
    )
    return Markup(page)  # noqa: S704 (the same)


def _slice(one: Mapping[str, Any]) -> tuple[str, Mapping[str, float], str, float | None]:
    return one["name"], one["score"], f"{one['rows']:,} rows", one["champion"]


def _bound(check: Mapping[str, Any]) -> str:
    """A check's limit with its direction, which its sentence tells."""
    if check["limit"] is None or check["value"] is None:
        return short(check["limit"])
    return ("at most " if "the limit" in check["sentence"] else "at least ") + short(check["limit"])


def _bars(rows: Iterable[tuple[str, Mapping[str, float], str, float | None]]) -> dict[str, Any]:
    """A picture with its rows: values and where they lie between the lowest end of any interval and 1."""
    found = list(rows)
    ends = [
        value for _, score, _, other in found for value in (score["low"], score["high"], other) if value is not None
    ]
    low, high = (min(ends), max(1.0, *ends)) if ends else (0.0, 1.0)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(6 + (value - low) / span * (WIDTH - 12), 1)

    drawn = [
        {
            "name": name,
            **{key: score[key] for key in ("value", "low", "high")},
            "x": place(score["value"]),
            "x_low": place(score["low"]),
            "x_high": place(score["high"]),
            "champion": other,
            "x_champion": None if other is None else place(other),
            "remark": remark,
        }
        for name, score, remark, other in found
    ]
    return {
        "rows": drawn,
        "low": low,
        "high": high,
        "has_champion": any(row["champion"] is not None for row in drawn),
        "has_remark": any(row["remark"] for row in drawn),
    }


def _confusion_rows(candidate: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for label, counts in zip(candidate.get("classes", []), candidate.get("confusion", []), strict=True):
        total = max(sum(counts), 1)
        rows.append({"label": label, "cells": [{"count": n, "share": round(n / total, 3)} for n in counts]})
    return rows


def _class_rows(candidate: Mapping[str, Any]) -> list[dict[str, Any]]:
    per_class = candidate.get("per_class")
    if not per_class:
        return []
    columns: Sequence[Sequence[float]] = [per_class[name] for name in ("precision", "recall", "f1", "support")]
    return [
        {"label": label, "precision": precision, "recall": recall, "f1": f1, "rows": int(support)}
        for label, precision, recall, f1, support in zip(candidate["classes"], *columns, strict=True)
    ]


def _calibration_points(candidate: Mapping[str, Any]) -> list[dict[str, float]]:
    """Where the bins of the calibration curve lie in the drawing, larger with more rows."""
    curve = candidate.get("calibration", [])
    most = max((point["rows"] for point in curve), default=1)
    return [
        {
            "x": round(ORIGIN_X + SIDE * point["confidence"], 1),
            "y": round(ORIGIN_Y - SIDE * point["accuracy"], 1),
            "radius": round(2 + 5 * (point["rows"] / most) ** 0.5, 1),
        }
        for point in curve
    ]
