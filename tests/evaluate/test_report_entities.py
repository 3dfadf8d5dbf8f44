"""Texts with spans as a verdict's page shows them."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment

from modelyard.evaluate.report import _entities
from modelyard.evaluate.report_entities import SHOWN_CHARACTERS, marked
from modelyard.evaluate.report_template import INTERVALS


def span(start: int, end: int, label: str) -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


def told(text: str, truth: list[dict[str, Any]], found: list[dict[str, Any]]) -> dict[str, Any]:
    return {"text": text, "errors": 1, "truth": truth, "found": found}


def test_a_text_shows_what_was_found_missed_and_made_up():
    """The same characters with another label are both; no character is lost."""
    one = told("Ada in Bern.", [span(0, 3, "who"), span(7, 11, "where")], [span(0, 3, "who"), span(7, 11, "who")])
    parts = [(part["text"], part["kind"], part["label"]) for part in marked(one)["parts"]]
    assert parts == [
        ("Ada", "right", "who"),
        (" in ", "", ""),
        ("Bern", "missed", "where"),
        ("Bern", "made_up", "who"),
        (".", "", ""),
    ]


def test_a_long_text_is_cut():
    """Spans behind the cut are left out, and the page says that there is more."""
    shown = marked(told("a" * 2 * SHOWN_CHARACTERS, [span(SHOWN_CHARACTERS + 9, SHOWN_CHARACTERS + 12, "x")], []))
    assert shown["is_cut"]
    assert "".join(part["text"] for part in shown["parts"]) == "a" * SHOWN_CHARACTERS


def test_what_a_text_holds_is_no_markup():
    """Neither the text nor a label becomes part of the page."""
    environment = Environment(autoescape=True)
    environment.filters["short"] = str
    label = {"label": "<i>", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1.0, "interval": None}
    worst = [told("<script>alert(1)</script>", [span(0, 8, "<b>")], [])]
    page = _entities(environment, environment.from_string(INTERVALS), {"labels": [label], "worst": worst})
    assert "&lt;script&gt;" in page
    for tag in ("<script>", "<i>", "<b>"):
        assert tag not in page
