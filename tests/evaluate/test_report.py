"""The page of a verdict, as a browser shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from modelyard.evaluate.explain_figure import explanation_png
from modelyard.evaluate.report import report
from modelyard.evaluate.report_numbers import in_short, scatter
from tests.browsers import chromium

SCORE = {"value": 0.95, "low": 0.93, "high": 0.97, "confidence": 0.95}
METRICS = {
    "rows": 400, "accuracy": 0.95, "macro_f1": 0.94, "classes": ["<b>no</b>", "yes"],
    "per_class": {"precision": [0.9, 1.0], "recall": [1.0, 0.9], "f1": [0.94, 0.95], "support": [200, 200]},
    "intervals": {"loss": {"low": 0.1, "high": 0.2}},
    "confusion": [[200, 0], [20, 180]],
    "calibration": [{"rows": 300, "accuracy": 0.97, "confidence": 0.98}, {"rows": 100, "accuracy": 0.6, "confidence": 0.7}],
}  # fmt: skip
VERDICT = {
    "subject": "compressed:abc", "passed": False, "override": None, "metric": "accuracy", "form": "int8",
    "reasons": ["accuracy 0.9500 is below the floor 0.9900"], "notes": ["fewer than 30 rows: city = Bern"],
    "checks": [{"name": "accuracy", "value": 0.95, "limit": 0.99, "passed": False, "sentence": ""}],
    "scores": {"candidate": SCORE, "float": SCORE, "champion": SCORE},
    "comparison": {"difference": {**SCORE, "value": 0.01}, "probability_better": 0.9, "only_candidate_right": 9,
                   "only_champion_right": 5, "p_value": 0.42},
    "slices": [{"name": "city = Bern", "rows": 12, "score": SCORE, "champion": 0.9, "is_decisive": False},
               {"name": "city = Genf", "rows": 388, "score": SCORE, "champion": 0.9, "is_decisive": True}],
    "disturbed": {"undisturbed": {"candidate": 0.95, "float": 0.95, "champion": 0.9},
                  "noise": {"candidate": 0.9, "float": 0.9, "champion": 0.8}},
    "attacked": {"undisturbed": {"candidate": 0.95, "float": 0.95, "champion": 0.9},
                 "fgsm": {"candidate": 0.7, "float": 0.7}},
    "attack_strength": 0.1, "sizes": {"candidate": 8331, "float": 21000, "champion": 12000},
    "inputs": {"candidate": "abc", "dataset": "def"},
}  # fmt: skip
EXPLAINED = {
    "columns": ["age", "city"], "grid": None, "rows": 200, "importance": [0.2, 0.01],
    "attribution": {"global": [0.5, 0.1], "by_class": {"no": [0.4, -0.1], "yes": [-0.4, 0.1]},
                    "completeness": {"largest": 0.02, "mean": 0.001}},
    "worst": [{"truth": "no", "answer": "yes", "confidence": 0.99, "values": [3.0, 1.0], "attribution": [0.4, -0.2]}],
}  # fmt: skip
MODELS = {"candidate": METRICS, "float": METRICS, "champion": METRICS}


def test_names_of_classes_are_text():
    """What a data set calls its classes cannot become markup."""
    assert "<b>no</b>" not in report(VERDICT, MODELS)


def test_an_override_names_who_and_why():
    """The page of a candidate that was let through says so at its head."""
    page = report({**VERDICT, "override": {"by": "Ada", "reason": "demo on Monday"}}, MODELS)
    assert "Passed by override" in page
    assert "Let through by Ada: demo on Monday" in page


def test_the_page_begins_with_what_matters():
    """Score, float form, champion, the worst slice that is large enough, the worst trouble; each check says which way it points,
    and each score what it is."""
    said = in_short(VERDICT)
    assert said == [
        "accuracy is 0.9500; 95 % sure: between 0.9300 and 0.9700",
        "its float form has 0.9500, in 2.5 times the bytes",
        "it is better than the champion with a probability of 90.0 %",
        "it is worst for city = Genf: 0.9500 on 388 rows",
        "when disturbed it falls to 0.9000 (noise)",
        "under attack it falls to 0.7000 (fgsm)",
    ]
    page = report(VERDICT, MODELS)
    assert all(sentence in page for sentence in said)
    assert "at least 0.9900" in page
    assert "<b>accuracy</b>: share of the rows that are answered right" in page


def test_a_regression_shows_its_answers():
    """Truth and answer of some rows on one scale, and how large errors are; nothing where there are none."""
    drawn = scatter([(0.0, 10.0), (10.0, 10.0), (5.0, 0.0)])
    assert (drawn["low"], drawn["high"]) == (0.0, 10.0)
    assert [(point["x"], point["y"]) for point in drawn["points"]] == [(60.0, 20.0), (290.0, 20.0), (175.0, 250.0)]
    found = {"rows": 3, "r2": 0.5, "rmse": 6.5, "intervals": {}, "points": [(0.0, 10.0), (10.0, 10.0), (5.0, 0.0)]}
    page = report({**VERDICT, "metric": "r2"}, dict.fromkeys(MODELS, found))
    assert "Answers against the truth" in page
    assert "no more than\n5, nine in ten by no more than 9" in page
    assert "Answers against the truth" not in report(VERDICT, MODELS)
    assert scatter([]) is None


@pytest.mark.browser
def test_the_page_opens_offline_and_prints(tmp_path: Path):
    """No request leaves the page, nothing goes to the console, every part is visible, and it becomes a PDF."""
    program = chromium()
    file = tmp_path / "report.html"
    file.write_text(report(VERDICT, MODELS, EXPLAINED, explanation_png(EXPLAINED)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        page.set_viewport_size({"width": 720, "height": 1000})  # what A4 leaves between its margins
        page.emulate_media(media="print")
        printed_width = page.evaluate("document.documentElement.scrollWidth")
        headings = page.locator("h1, h2").all_inner_texts()
        printed = page.pdf()
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert headings == [
        "Refused", "Checks", "accuracy, with 95 % intervals", "Scores", "Slices, worst first",
        "Slices of too few rows to judge", "When disturbed",
        "Under attack", "What the answers rest on", "Confusion (rows: truth)", "Calibration", "Per class", "What was judged",
    ]  # fmt: skip
    assert printed.startswith(b"%PDF")
    assert printed_width <= 720, "nothing is cut off on paper"
