"""Which smaller forms to make, said or searched. onnx and torch are not imported here."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.compress.budget import Budget
from modelyard.compress.techniques import DynamicInt8, FormTechnique, HalfWeights, NetworkTechnique, StaticInt8
from modelyard.model_package import FLOAT_FORM

Technique = Annotated[StaticInt8 | DynamicInt8 | HalfWeights, Field(discriminator="technique")]


class MeasureConfig(Frozen):
    """How latency is measured: the median over ``repeats`` runs for each batch size."""

    batches: list[int] = Field(default=[1, 32], min_length=1)
    repeats: int = Field(200, ge=1, le=100_000)
    threads: int = Field(1, ge=1, le=1024, description="threads of the engine")


class SearchConfig(Frozen):
    """Have the best form found, under a budget.

    Attributes:
        budget: what a candidate has to keep.
        prefer: of the candidates inside the budget, the fastest (at the first measured batch size, in relation to the
            float form measured beside it) or the smallest.
        tie_fraction: a candidate counts as fast as the fastest unless it is shown to be slower than another one by more than
            this; the smaller file then wins.
        networks: techniques that change the network itself; each opens a branch, of which first the float form is
            tried, and the other forms only where that one is worth it.
        forms: techniques that give each network another form.
        candidate_seconds: bound on building one candidate.
        builders: candidates built at the same time.
        rounds: turns in which the candidates are measured, ``repeats`` runs shared among them, in four processes one after the
            other; in up to four times as many, of those that may win, while it is unclear who is as fast as the fastest.
    """

    budget: Budget = Budget()
    prefer: Literal["speed", "size"] = "speed"
    tie_fraction: float = Field(0.05, ge=0, lt=1)
    networks: list[NetworkTechnique] = Field(default_factory=list)
    forms: list[FormTechnique] = Field(default=[StaticInt8(), HalfWeights()])
    candidate_seconds: float = Field(300, gt=0)
    builders: int = Field(2, ge=1, le=64)
    rounds: int = Field(15, ge=3, le=1000)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for names in ([one.form for one in self.forms], [one.label for one in self.networks]):
            if len(set(names)) != len(names):
                raise ValueError(f"two techniques have one name in {', '.join(names)}: give one another `form`")
        return self


class CompressConfig(Frozen):
    """Config of the compress stage. The form `float` is always made.

    Attributes:
        techniques: one form for each; not used where there is a search.
        default_form: what the endpoint serves unless told otherwise; a search decides it itself.
        search: have forms tried and the best one taken, instead of making those that are named.
        parity_tolerance: how far outputs of the float form may lie from torch's, as a fraction of the largest
            output (or of 1 where all are smaller).
    """

    techniques: list[Technique] = Field(default=[StaticInt8()])
    default_form: str = "int8"
    search: SearchConfig | None = None
    parity_tolerance: float = Field(1e-4, gt=0, lt=1)
    measure: MeasureConfig = MeasureConfig()

    @model_validator(mode="after")
    def _forms_are_named_once(self) -> Self:
        forms = [FLOAT_FORM, *(technique.form for technique in self.techniques)]
        if len(set(forms)) != len(forms):
            raise ValueError(f"techniques: two forms have one name in {', '.join(forms)}")
        if self.default_form not in forms:
            raise ValueError(f"default_form: {self.default_form!r} is none of the forms made: {', '.join(forms)}")
        return self

    @model_validator(mode="after")
    def _search_stands_alone(self) -> Self:
        if self.search is None:
            return self
        if said := {"techniques", "default_form"} & self.model_fields_set:
            raise ValueError(f"search decides which form is served: leave out {' and '.join(sorted(said))}")
        for limit in self.search.budget.latency:
            if limit.batch not in self.measure.batches:
                raise ValueError(f"search.budget.latency: batch {limit.batch} is not in measure.batches")
        return self
