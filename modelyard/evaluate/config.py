"""What a candidate is held against."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo

from modelyard.artifacts import Frozen
from modelyard.metrics import LOWER_IS_BETTER
from modelyard.nearest import nearest

MetricName = Literal[
    "accuracy", "macro_f1", "r2", "spearman", "pearson", "recall_at_1", "recall_at_10", "recall_at_100", "ndcg_at_10", "mrr",
    "bits_per_byte", "perplexity", "span_f1", "macro_span_f1", "span_precision", "span_recall",
]  # fmt: skip
LANGUAGE_METRICS = ("bits_per_byte", "perplexity")  # less is better
# What further bounds may look at; which of them a task has is known where it is judged.
LESS_IS_BETTER = ("loss", "mae", "rmse", "calibration_error", *LANGUAGE_METRICS)
MORE_IS_BETTER = (
    *(name for name in get_args(MetricName) if name not in LOWER_IS_BETTER),
    "roc_auc",
    "cosine_to_float",
    "smallest_cosine_to_float",
)
# What a gate's one metric may be, by task.
RANKED = ("recall_at_1", "recall_at_10", "recall_at_100", "ndcg_at_10", "mrr")
JUDGED = {
    "classification": ("accuracy", "macro_f1"),
    "regression": ("r2",),
    "token_classification": ("span_f1", "macro_span_f1", "span_precision", "span_recall"),
    "retrieval": RANKED,
    "embedding": ("recall_at_1", "recall_at_10", "ndcg_at_10", "mrr"),
    "language_modelling": LANGUAGE_METRICS,
    "masked_language_modelling": ("perplexity",),
}
# Fewer rows prove nothing about a slice: it is shown with its interval, and no gate looks at it.
MIN_SLICE_ROWS = 30


def judged_metrics(task: str, *, has_similarity: bool = False) -> tuple[str, ...]:
    """What ``metric`` may be for a task.

    Args:
        has_similarity: of ``embedding``: its pairs say how alike they are.
    """
    return ("spearman", "pearson") if has_similarity else JUDGED[task]


class EvaluateConfig(Frozen):
    """Config of the evaluate stage.

    Attributes:
        metric: what the gates look at; more is better. A regression has ``r2``; vectors of texts have ``spearman`` and
            ``pearson`` where pairs have a similarity, else ``recall_at_1``, ``recall_at_10``, ``ndcg_at_10``, ``mrr``;
            retrieval has these and ``recall_at_100``. Spans of texts have ``span_f1``, ``macro_span_f1``,
            ``span_precision`` and ``span_recall``. A language model has ``bits_per_byte`` and ``perplexity``, of which less
            is better.
        floor: what the candidate must reach.
        ceiling: in its place for a language model: what the metric may reach at most.
        floors: what further scores of the candidate must reach, by name: ``roc_auc``, ``macro_f1``, any of which more is
            better.
        ceilings: what others may reach at most: ``rmse``, ``mae``, ``loss``, ``calibration_error``, any of which less is
            better; errors in the target's own units.
        allowed_drop_against_float: how far it may lie below its own float form.
        allowed_drop_against_champion: how far it may lie below what serves now.
        probability_better: how likely it must be, by the paired bootstrap, that the candidate beats what serves now;
            None: it need not be better.
        slices: columns whose values (or quarters) are judged apart.
        slice_floor: what each slice of at least `MIN_SLICE_ROWS` rows must reach.
        allowed_drop_in_slices: how far each of them may lie below what serves now.
        max_calibration_error: largest expected calibration error, 0 to 1.
        allowed_calibration_rise_against_champion: how far that error may lie above that of what serves now.
        max_size_bytes: largest size of the judged form's file.
        max_size_ratio_to_champion: the same as a multiple of the size of what serves now.
        max_latency_ms: longest median time of one row, as compression measured it on its machine.
        max_latency_ratio_to_champion: the same as a multiple of that of what serves now; each as compression measured it
            when it was made, so it means something where both were made on one kind of machine.
        robustness_rows: test rows that are answered again with noise, gaps and shuffled columns; 0: none.
        allowed_drop_when_disturbed: how far the score may fall by any of these disturbances.
        allowed_drop_when_disturbed_against_champion: how far it may then lie below what serves, disturbed alike.
        attack_strength: how far an opponent may move each of the network's inputs, as a fraction of its own deviation
            over those rows; 0: no attacks.
        allowed_drop_under_attack: how far the score may fall by any attack.
        allowed_drop_under_attack_against_champion: how far it may then lie below what serves, under the same attack.
        explained_rows: test rows that answers are explained on; 0: none.
        resamples: of the bootstrap.
        confidence: of the intervals.
        seed: of resamples and disturbances.
        licence: under which the model may be used; for its card.
        intended_use: what it is for, and what not; for its card.
        override_by: the person who lets the candidate pass whatever the checks say; it needs a reason, and both are
            recorded in the verdict.
        override_reason: why.
        form: which of the candidate's forms is judged; None: its default one.
        golden_rows: test rows kept, with the candidate's outputs, for the endpoint to prove itself with.
        golden_tolerance: how far any output of a golden row may lie from the kept one on another machine, as a
            fraction of the largest kept one. Integer sums are exact everywhere, but a processor that fuses multiply
            and add may round an activation to the next int8 step: 1/255 = 0.4 % where a single activation decides
            (0.07 % on the digits), so 0.5 % admits that. Float forms differ by 1e-6, saturating sums by 12 %.
        threads: of the engine.
    """

    metric: MetricName = "accuracy"
    floor: float = Field(0.9, ge=0, le=1)
    ceiling: float | None = Field(None, gt=0)
    floors: dict[str, float] = Field(default_factory=dict)
    ceilings: dict[str, float] = Field(default_factory=dict)
    allowed_drop_against_float: float = Field(0.01, ge=0, le=1)
    allowed_drop_against_champion: float = Field(0.01, ge=0, le=1)
    probability_better: float | None = Field(None, gt=0, lt=1)
    slices: tuple[str, ...] = ()
    slice_floor: float | None = Field(None, ge=0, le=1)
    allowed_drop_in_slices: float | None = Field(None, ge=0, le=1)
    max_calibration_error: float | None = Field(None, ge=0, le=1)
    allowed_calibration_rise_against_champion: float | None = Field(None, ge=0, le=1)
    max_size_bytes: int | None = Field(None, ge=1)
    max_size_ratio_to_champion: float | None = Field(None, gt=0)
    max_latency_ms: float | None = Field(None, gt=0)
    max_latency_ratio_to_champion: float | None = Field(None, gt=0)
    robustness_rows: int = Field(2000, ge=0)
    allowed_drop_when_disturbed: float | None = Field(None, ge=0, le=1)
    allowed_drop_when_disturbed_against_champion: float | None = Field(None, ge=0, le=1)
    attack_strength: float = Field(0.1, ge=0, le=10)
    allowed_drop_under_attack: float | None = Field(None, ge=0, le=1)
    allowed_drop_under_attack_against_champion: float | None = Field(None, ge=0, le=1)
    explained_rows: int = Field(256, ge=0, le=100_000)
    resamples: int = Field(2000, ge=200, le=100_000)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    seed: int = Field(0, ge=0, lt=2**31)
    licence: str = ""
    intended_use: str = ""
    override_by: str = ""
    override_reason: str = ""
    form: str | None = None
    golden_rows: int = Field(16, ge=1, le=1024)
    golden_tolerance: float = Field(0.005, gt=0, lt=1)
    threads: int = Field(1, ge=1, le=1024)

    @field_validator("floors", "ceilings")
    @classmethod
    def _bounds_point_the_right_way(cls, bounds: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        own, other = (
            (MORE_IS_BETTER, LESS_IS_BETTER) if info.field_name == "floors" else (LESS_IS_BETTER, MORE_IS_BETTER)
        )
        for name in bounds:
            if name in other:
                side = (
                    "less is better there: ceilings" if info.field_name == "floors" else "more is better there: floors"
                )
                raise ValueError(f"{name} has no place among {info.field_name}, {side} take it")
            if name not in own:
                raise ValueError(nearest(name, own))
        return bounds

    @model_validator(mode="after")
    def _language_has_a_ceiling(self) -> EvaluateConfig:
        if (self.metric in LANGUAGE_METRICS) != (self.ceiling is not None):
            raise ValueError(
                f"ceiling goes with {' or '.join(LANGUAGE_METRICS)}, and they need it: less is better there"
            )
        return self

    @model_validator(mode="after")
    def _override_is_whole(self) -> EvaluateConfig:
        if bool(self.override_by.strip()) != bool(self.override_reason.strip()):
            raise ValueError("an override needs both override_by (a person) and override_reason")
        return self

    @model_validator(mode="after")
    def _slice_gates_have_slices(self) -> EvaluateConfig:
        if not self.slices and (self.slice_floor is not None or self.allowed_drop_in_slices is not None):
            raise ValueError("slice_floor and allowed_drop_in_slices need columns in slices")
        return self
