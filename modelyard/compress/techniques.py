"""One frozen config a technique, named for exactly what it does. onnx and torch are not imported here.

*Form techniques* turn a float network into a file for an engine. *Network techniques* make a smaller network of it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.runtime import EngineName

FORM_NAME = r"^[a-z0-9][a-z0-9_.-]*$"


# -- forms ------------------------------------------------------------------------------------------------


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


class HalfWeights(Frozen):
    """Weights stored as fp16, computed in fp32 after one conversion at load: half the file, the same speed."""

    technique: Literal["half_weights"] = "half_weights"
    form: str = Field("fp16-weights", pattern=FORM_NAME)


class Float32(Frozen):
    """The float network as it is, for another engine.

    On OpenVINO ``precision: bf16`` (needs a processor with bf16 instructions) computes in bf16 and stores fp16.
    """

    technique: Literal["float32"] = "float32"
    engine: EngineName = "openvino"
    precision: Literal["fp32", "bf16"] = "fp32"
    form: str = Field("openvino", pattern=FORM_NAME)

    @model_validator(mode="after")
    def _engine_knows_precision(self) -> Self:
        if self.precision == "bf16" and self.engine == "onnxruntime":
            raise ValueError("onnxruntime has no bf16 kernels for x86 processors: take engine openvino or torch")
        return self


class NncfInt8(Frozen):
    """Weights and activations as int8 in ranges fixed by training rows, by NNCF's post-training quantization, for OpenVINO.

    Attributes:
        calibration_rows: as `StaticInt8` has it.
        transformer: NNCF's own recipe for attention (``model_type=transformer``).
    """

    technique: Literal["nncf_int8"] = "nncf_int8"
    form: str = Field("openvino-int8", pattern=FORM_NAME)
    calibration_rows: int = Field(300, ge=1, le=10_000)
    transformer: bool = False


class BlockWeights(Frozen):
    """What the forms share whose weights alone are stored in few bits, a scale and a zero point for each block of a column;
    onnxruntime's `MatMulNBits`, which multiplies them as they are.

    Nothing is calibrated, and a row's outputs do not depend on its batch. Convolutions stay as they are.

    Attributes:
        block_size: weights that share a scale: fewer are more exact and take more room.
    """

    block_size: Literal[16, 32, 64, 128, 256] = 32


class Int4Weights(BlockWeights):
    """Weights of matrix products in 4 bits: an eighth of their float size, and the scales."""

    technique: Literal["int4_weights"] = "int4_weights"
    form: str = Field("int4-weights", pattern=FORM_NAME)


class Int8Weights(BlockWeights):
    """Weights of matrix products in 8 bits: a quarter of their float size, and the scales."""

    technique: Literal["int8_weights"] = "int8_weights"
    form: str = Field("int8-weights", pattern=FORM_NAME)


class AcceleratorOnly(Frozen):
    """Techniques whose kernels only an accelerator has. They can be named, and fall with the reason where it is missing.

    Attributes:
        technique: ``torchao_int4``: weights in 4 bits by torchao; ``gptq_int4``: the same, rounded so that a layer's outputs
            change least (Frantar et al. 2022, arXiv 2210.17323); ``sparse_2_4``: of each four weights in a row two are zero
            (Mishra et al. 2021, arXiv 2104.08378), which sparse tensor cores skip.
    """

    technique: Literal["torchao_int4", "gptq_int4", "sparse_2_4"]
    form: str = Field("", pattern=FORM_NAME, description="name of the form; empty: that of the technique")

    @model_validator(mode="before")
    @classmethod
    def _form_is_named(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.get("form"):
            return {**given, "form": str(given.get("technique", "")).replace("_", "-")}
        return given


FormTechnique = Annotated[
    StaticInt8 | DynamicInt8 | HalfWeights | Float32 | NncfInt8 | Int4Weights | Int8Weights | AcceleratorOnly,
    Field(discriminator="technique"),
]


# -- networks ---------------------------------------------------------------------------------------------


class Recovery(Frozen):
    """A fine-tune by the train stage, of a network that lost something. Its other settings are the preset's own.

    Attributes:
        max_epochs: at most so many.
        learning_rate: None: a tenth of the training's.
    """

    max_epochs: int = Field(10, ge=1, le=100_000)
    learning_rate: float | None = Field(None, gt=0, le=100)


class NetworkBase(Frozen):
    """What techniques on networks share: an optional fine-tune afterwards."""

    takes_forms: ClassVar[bool] = True  # whether there is a float network that other forms can be made of

    recovery: Recovery | None = None

    @property
    def needs_training(self) -> bool:
        """Whether the train stage has a part in it: that costs far more than the technique itself."""
        return self.recovery is not None


class LowRank(NetworkBase):
    """A linear layer becomes two narrow ones, by truncated singular value decomposition of its weights.

    Attributes:
        energy: share of the squared singular values that is kept, layer by layer.
        parameter_fraction: instead: the ranks are those that leave this share of the layers' parameters.
    """

    technique: Literal["low_rank"] = "low_rank"
    energy: float | None = Field(None, gt=0, lt=1)
    parameter_fraction: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.energy is None) == (self.parameter_fraction is None):
            raise ValueError("say either energy or parameter_fraction")
        return self

    @property
    def label(self) -> str:
        amount = f"e{self.energy:g}" if self.energy else f"{self.parameter_fraction:g}"
        return f"low-rank-{amount}"


class PrincipalComponents(NetworkBase):
    """A linear layer reads its input through the principal components of what training rows make of that input.

    Attributes:
        variance: share of the input's variance that is kept, layer by layer.
        rows: of the training split, spread evenly.
    """

    technique: Literal["principal_components"] = "principal_components"
    variance: float = Field(0.99, gt=0, lt=1)
    rows: int = Field(2048, ge=2, le=100_000)

    @property
    def label(self) -> str:
        return f"components-{self.variance:g}"


class PruneUnits(NetworkBase):
    """Whole hidden units are removed, the least important ones first: the network is narrower afterwards.

    Attributes:
        fraction: of the hidden units of each layer.
        importance: ``activation``: mean |activation| over training rows times the norm of the weights that read it;
            ``weight``: the norms of the weights alone.
        rows: of the training split that importance is measured on.
    """

    technique: Literal["prune_units"] = "prune_units"
    fraction: float = Field(0.5, gt=0, lt=1)
    importance: Literal["activation", "weight"] = "activation"
    rows: int = Field(2048, ge=1, le=100_000)

    @property
    def label(self) -> str:
        return f"units-{self.fraction:g}"


class PruneHeads(NetworkBase):
    """Whole attention heads are removed, the least important ones first (Michel et al. 2019, arXiv 1905.10650): queries, keys,
    values and the layer that reads them are narrower afterwards.

    Attributes:
        fraction: of the heads of all layers together; each layer keeps at least one.
        rows: of the training split that importance is measured on.
    """

    technique: Literal["prune_heads"] = "prune_heads"
    fraction: float = Field(0.25, gt=0, lt=1)
    rows: int = Field(512, ge=1, le=100_000)

    @property
    def label(self) -> str:
        return f"heads-{self.fraction:g}"


class PruneWeights(NetworkBase):
    """The smallest weights are set to zero. **Alone this gives neither speed nor size**: zeros are stored and multiplied
    like other numbers. A recovery fine-tune keeps them at zero.
    """

    technique: Literal["prune_weights"] = "prune_weights"
    fraction: float = Field(0.5, gt=0, lt=1)

    @property
    def label(self) -> str:
        return f"weights-{self.fraction:g}"


class Distil(NetworkBase):
    """A narrower network of the same kind learns from the trained one's outputs (Hinton et al. 2015).

    Attributes:
        width_fraction: of each hidden layer's width.
        recovery: the training of the student; as long as the teacher's unless said otherwise.
    """

    technique: Literal["distil"] = "distil"
    width_fraction: float = Field(0.25, gt=0, lt=1)
    temperature: float = Field(2.0, gt=0)
    weight: float = Field(0.5, gt=0, le=1, description="of the teacher's part in the loss")

    @property
    def label(self) -> str:
        return f"distil-{self.width_fraction:g}"

    @property
    def needs_training(self) -> bool:
        return True


class QuantizeAware(NetworkBase):
    """A fine-tune that computes as int8 will: weights and inputs of each layer are rounded on the way forward, gradients go
    straight through (Jacob et al. 2018, arXiv 1712.05877). Its float form is the int8 file itself, with the ranges that
    training left.

    Attributes:
        rows: of the training split that fix the ranges that training begins with, and follows from there.
    """

    takes_forms: ClassVar[bool] = False

    technique: Literal["quantize_aware"] = "quantize_aware"
    recovery: Recovery | None = Recovery()
    rows: int = Field(512, ge=1, le=10_000)

    @model_validator(mode="after")
    def _trains(self) -> Self:
        if self.recovery is None:
            raise ValueError("quantize_aware is a training: say recovery, or take the form static_int8")
        return self

    @property
    def label(self) -> str:
        return "int8-aware"


NetworkTechnique = Annotated[
    LowRank | PrincipalComponents | PruneUnits | PruneHeads | PruneWeights | Distil | QuantizeAware,
    Field(discriminator="technique"),
]
