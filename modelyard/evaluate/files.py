"""Names of the files of a verdict."""

VERDICT_FILE = "verdict.json"
METRICS_FILE = "metrics.json"
GOLDEN_FILE = "golden.json"
REPORT_FILE = "report.html"
CARD_FILE = "model-card.md"
EXPLANATIONS_FILE = "explanations.json"
EXPLANATIONS_PICTURE = "explanations.png"
