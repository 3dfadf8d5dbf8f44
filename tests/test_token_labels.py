"""Entities among tags, and how they are counted."""

from __future__ import annotations

import numpy as np
import pytest

from modelyard.errors import DataError
from modelyard.span_metrics import SpanMetrics, scores_of_sums, span_sums
from modelyard.task_kinds import Target, task_kind
from modelyard.token_labels import (
    NO_TAG,
    Place,
    Span,
    chunks,
    labels_of,
    spans_json,
    spans_of_json,
    tags_at,
    tags_for,
    words_and_tags,
)

TAGS = tags_for(["LOC", "PER"])
NUMBERS = {tag: number for number, tag in enumerate(TAGS)} | {"-": NO_TAG}


def numbered(*rows: str) -> np.ndarray:
    """Rows of tags, filled up."""
    found = [[NUMBERS[tag] for tag in row.split()] for row in rows]
    return np.array([row + [NO_TAG] * (max(map(len, found)) - len(row)) for row in found])


def sure(*rows: str) -> np.ndarray:
    """Outputs whose likeliest tags are these; where a row has none, a tag that nobody should look at."""
    tags = numbered(*rows)
    outputs = np.zeros((*tags.shape, len(TAGS)), dtype=np.float32)
    np.put_along_axis(outputs, np.where(tags < 0, 3, tags)[..., None], 5.0, axis=2)
    return outputs


@pytest.mark.parametrize(("row", "found"), [
    ("B-PER I-PER O B-LOC", [(0, 1, "PER"), (3, 3, "LOC")]),
    ("B-PER B-PER", [(0, 0, "PER"), (1, 1, "PER")]),
    ("O I-PER I-PER", [(1, 2, "PER")]),  # conlleval: an inside tag behind another label or none begins an entity
    ("B-PER I-LOC I-LOC", [(0, 0, "PER"), (1, 2, "LOC")]),
    ("- B-PER - I-PER -", [(1, 3, "PER")]),  # what carries no tag is not looked at
    ("O O", []),
])  # fmt: skip
def test_entities_are_read_as_conlleval_reads_them(row: str, found: list[tuple[int, int, str]]):
    """Its rules of beginning and end of a chunk (https://www.clips.uantwerpen.be/conll2000/chunking/conlleval.txt)."""
    entities = chunks(numbered(row))
    labels = [labels_of(TAGS)[number] for number in entities.label]
    assert list(zip(entities.first.tolist(), entities.last.tolist(), labels, strict=True)) == found


def test_an_entity_never_runs_from_one_text_into_the_next():
    """Though its tags would go on."""
    assert chunks(numbered("O B-PER", "I-PER O")).row.tolist() == [0, 1]


def test_an_entity_is_right_if_all_of_it_is():
    """By hand: of three entities one is found as it is, one with another end, one is missed, and one is made up."""
    truth = numbered("- B-PER I-PER O B-LOC -", "- B-LOC O O -")
    outputs = sure("- B-PER O O B-LOC -", "- O B-LOC O -")
    metric = SpanMetrics(2)
    metric.update(outputs, truth)
    found = metric.compute()
    assert found["span_precision"] == pytest.approx(1 / 3)
    assert found["span_recall"] == pytest.approx(1 / 3)
    assert found["span_f1"] == pytest.approx(1 / 3)
    assert metric.per_label()["f1"].tolist() == pytest.approx([0.5, 0.0])
    assert found["macro_span_f1"] == pytest.approx(0.25)
    assert found["token_accuracy"] == pytest.approx(4 / 7)
    rows = span_sums(outputs, truth, 2)
    assert scores_of_sums(rows, 2)["span_f1"].tolist() == pytest.approx([0.5, 0.0])


def test_parts_add_up_to_the_whole():
    """However rows are cut into batches, and however wide those are."""
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(30, 9, len(TAGS)))
    targets = rng.integers(0, len(TAGS), (30, 9))
    targets[rng.random((30, 9)) < 0.2] = NO_TAG
    whole, parts = SpanMetrics(2), SpanMetrics(2)
    whole.update(outputs, targets)
    targets[:10, 6:] = NO_TAG
    again = SpanMetrics(2)
    again.update(outputs, targets)
    parts.update(outputs[:10], targets[:10, :6])
    parts.update(outputs[10:], targets[10:])
    np.testing.assert_allclose(parts.state, again.state)
    assert whole.state[:6].sum() > again.state[:6].sum()


def test_nothing_to_find_is_no_error():
    """Neither rows without entities, nor none at all."""
    metric = SpanMetrics(2)
    metric.update(sure("O O"), numbered("O O"))
    metric.update(np.zeros((0, 3, len(TAGS))), np.zeros((0, 3), dtype=np.int64))
    assert metric.compute()["span_f1"] == 0.0
    assert metric.compute()["token_accuracy"] == 1.0


def test_spans_become_tags_only_where_tokens_begin_and_end():
    """One that would share a token with another has no tags that say it either."""
    where = [Place(1, 0, 3), Place(2, 4, 8), Place(4, 9, 12)]
    assert tags_at([Span(4, 12, "x")], where, {"x": 1}) == [0, 3, 4]
    for spans in ([Span(4, 7, "x")], [Span(5, 8, "x")], [Span(0, 3, "x"), Span(0, 8, "x")]):
        with pytest.raises(DataError, match="does not begin and end with tokens"):
            tags_at(spans, where, {"x": 1})


def test_words_become_a_text():
    """IOB1 and IOB2 alike; spans survive their own spelling."""
    text, spans = words_and_tags(["Ada", "Lovelace", "in", "Bern", "Ada"], ["I-PER", "I-PER", "O", "B-LOC", "B-PER"])
    assert [(text[one.start : one.end], one.label) for one in spans] == [
        ("Ada Lovelace", "PER"),
        ("Bern", "LOC"),
        ("Ada", "PER"),
    ]
    assert spans_of_json(spans_json(spans[::-1])) == spans


def test_the_kind_asks_for_tags():
    """Two for each label and one for the rest; answers are a tag and its probability for each token."""
    kind = task_kind("token_classification")
    target = kind.fit_target("spans", {"PER", "LOC"})
    assert target.classes == TAGS
    assert Target.model_validate_json(target.model_dump_json()) == target
    answers = kind.decode(target, sure("B-PER I-PER"))
    assert answers["tag"].tolist() == [[3, 4]]
    assert (answers["probability"] > 0.9).all()
    with pytest.raises(DataError, match="no span in any training row"):
        kind.fit_target("spans", set())
