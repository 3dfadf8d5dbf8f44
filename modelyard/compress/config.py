"""Which smaller forms to make. onnx and torch are not imported here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.model_package import FLOAT_FORM

FORM_NAME = r"^[a-z0-9][a-z0-9_-]*$"


class StaticInt8(Frozen):
    """Weights as int8, activations as uint8 in ranges that rows of the training split fix once, by onnxruntime.

    A row's outputs are the same bits whatever rows it is computed with. What lies beyond anything seen in calibration
    is cut off at the end of its range.

    Attributes:
        form: name of the form it makes.
        calibration_rows: at most so many, spread evenly over the training split; held in memory at once.
        calibration: ``minmax`` covers all that was seen; ``percentile`` (99.999) and ``entropy`` sacrifice outliers
            to a finer step.
        per_channel: a scale for each output of a layer, not one for all.
        reduce_range: 7-bit weights. With 8 bits the sums of processors without VNNI saturate: the file would answer
            something else there than where it was evaluated.
    """

    technique: Literal["static_int8"] = "static_int8"
    form: str = Field("int8", pattern=FORM_NAME)
    calibration_rows: int = Field(512, ge=1, le=10_000)
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    per_channel: bool = True
    reduce_range: bool = True


class DynamicInt8(Frozen):
    """Weights as int8, activations as uint8 in ranges measured anew in every call, by onnxruntime.

    Needs no data, and costs that **answers depend on the batch**: the range is that of all rows of a call, so the rows
    of one client move the answers of another by about a step of int8 (measured: 0.2 % of the largest output on the
    digits, 0.6 % with 784 random inputs).
    Evaluation judges it in batches far larger than the endpoint's, and golden rows have to allow for it.
    """

    technique: Literal["dynamic_int8"] = "dynamic_int8"
    form: str = Field("int8-dynamic", pattern=FORM_NAME, description="name of the form it makes")
    per_channel: bool = Field(True, description="a scale for each output of a layer, not one for all")
    reduce_range: bool = Field(False, description="7-bit weights, for processors without VNNI, whose sums saturate")


Technique = Annotated[StaticInt8 | DynamicInt8, Field(discriminator="technique")]


class MeasureConfig(Frozen):
    """How latency is measured: the median over ``repeats`` runs for each batch size."""

    batches: list[int] = Field(default=[1, 32], min_length=1)
    repeats: int = Field(200, ge=1, le=100_000)
    threads: int = Field(1, ge=1, le=1024, description="threads of the engine")


class CompressConfig(Frozen):
    """Config of the compress stage. The form `float` is always made.

    Attributes:
        techniques: one form for each.
        default_form: what the endpoint serves unless told otherwise.
        parity_tolerance: how far outputs of the float form may lie from torch's, as a fraction of the largest
            output (or of 1 where all are smaller).
    """

    techniques: list[Technique] = Field(default=[StaticInt8()])
    default_form: str = "int8"
    parity_tolerance: float = Field(1e-4, gt=0, lt=1)
    measure: MeasureConfig = MeasureConfig()

    @model_validator(mode="after")
    def _forms_are_named_once(self) -> CompressConfig:
        forms = [FLOAT_FORM, *(technique.form for technique in self.techniques)]
        if len(set(forms)) != len(forms):
            raise ValueError(f"techniques: two forms have one name in {', '.join(forms)}")
        if self.default_form not in forms:
            raise ValueError(f"default_form: {self.default_form!r} is none of the forms made: {', '.join(forms)}")
        return self
