"""The part of a verdict's page that is about spans of texts: scores by label as a picture, and the worst texts, marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN_CHARACTERS = 600

ENTITIES = """
<h2>By label</h2>
{{ intervals(label_rows) }}
<table><tr><th>label</th><th class="number">precision</th><th class="number">recall</th><th class="number">F1</th>
<th class="number">spans</th></tr>
{% for one in labels %}<tr><td>{{ one.label }}</td><td class="number">{{ one.precision | short }}</td>
<td class="number">{{ one.recall | short }}</td><td class="number">{{ one.f1 | short }}</td>
<td class="number">{{ "{:,.0f}".format(one.support) }}</td></tr>{% endfor %}</table>
{% if worst %}
<h2>Texts with most errors</h2>
{% for one in worst %}<p>{% for part in one.parts %}{% if part.kind %}<span class="mark" title="{{ part.title }}" style="{{
styles[part.kind] }}">{{ part.text }}<sub>{{ part.label }}</sub></span>{% else %}{{ part.text }}{% endif %}{% endfor %}
{% if one.is_cut %}<span class="soft">...</span>{% endif %} <span class="soft">({{ one.errors }} errors)</span></p>
{% endfor %}
<p class="soft"><span style="{{ styles.right }}">found as it is</span>, <span style="{{ styles.missed }}">missed</span>,
<span style="{{ styles.made_up }}">made up</span>. A span is right if its beginning, its end and its label are.</p>
{% endif %}
"""
STYLES = {
    "right": "background: rgba(21, 115, 71, 0.15)",
    "missed": "border-bottom: 2px dashed #b42318",
    "made_up": "background: rgba(180, 83, 9, 0.25)",
}


def marked(one: Mapping[str, Any]) -> dict[str, Any]:
    """A text in parts, those of spans with what became of them; where a missed and a made-up span meet, both are shown one
    after the other."""
    truth, found = ({(span["start"], span["end"], span["label"]) for span in one[key]} for key in ("truth", "found"))
    spans = [(*span, "right" if span in found else "missed") for span in truth]
    spans += [(*span, "made_up") for span in found - truth]
    text, at, parts = one["text"], 0, []
    for start, end, label, kind in sorted(spans):
        if start >= SHOWN_CHARACTERS:
            break
        if start > at:
            parts.append(_part(text[at:start]))
        parts.append(_part(text[start:end], kind, label))
        at = max(at, end)
    stop = max(at, SHOWN_CHARACTERS)
    parts.append(_part(text[at:stop]))
    return {"parts": parts, "errors": one["errors"], "is_cut": stop < len(text)}


def label_bars(labels: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, float], str, float | None]]:
    """Rows of the picture, the worst first."""
    known = [one for one in labels if one["interval"]]
    return [
        (one["label"], one["interval"], f"{one['support']:,.0f} spans", None)
        for one in sorted(known, key=lambda one: one["interval"]["value"])
    ]


def _part(text: str, kind: str = "", label: str = "") -> dict[str, str]:
    return {"text": text, "kind": kind, "label": label, "title": kind.replace("_", " ")}
