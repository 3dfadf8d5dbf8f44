"""Which smaller forms to make. onnx and torch are not imported here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.model_package import FLOAT_FORM


class DynamicInt8(Frozen):
    """Weights as int8, activations quantized to uint8 as they come, by onnxruntime.

    The range of an activation is that of the whole batch: a row's outputs depend, within the rounding, on the rows
    it is computed with.
    """

    technique: Literal["dynamic_int8"] = "dynamic_int8"
    form: str = Field("int8", pattern=r"^[a-z0-9][a-z0-9_-]*$", description="name of the form it makes")
    per_channel: bool = Field(True, description="a scale for each output of a layer, not one for all")
    reduce_range: bool = Field(False, description="7-bit weights, for processors without VNNI, whose sums saturate")


# A union told apart by `technique` once there is a second one.
Technique = DynamicInt8


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

    techniques: list[Technique] = Field(default=[DynamicInt8()])
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
