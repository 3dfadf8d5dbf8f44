"""Which network to train: one config class a kind, told apart by `kind`. Torch is not imported here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from modelyard.artifacts import Frozen

MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"

Activation = Literal["relu", "gelu", "tanh", "silu", "identity"]


class MlpConfig(Frozen):
    """Fully connected layers; ``hidden_sizes=(128,)`` on 784 inputs and 10 classes is 784-128-10."""

    kind: Literal["mlp"] = "mlp"
    hidden_sizes: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = (128,)
    dropout: float = Field(0.2, ge=0, lt=1)
    activation: Activation = "relu"


class CustomConfig(Frozen):
    """A network of the user's own.

    ``factory`` is ``module:function``, importable where flows run; it is called with ``input_width``,
    ``output_width`` and ``options``, and returns a `torch.nn.Module` from (n, input_width) to (n, output_width).
    """

    kind: Literal["custom"]
    factory: str = Field(pattern=r"^[\w.]+:\w+$")
    options: dict[str, Any] = Field(default_factory=dict)


class LinearShape(Frozen):
    """A linear layer's own shape.

    Attributes:
        rank: it is two layers, (inputs -> rank) without a bias and (rank -> outputs); None: it is one.
    """

    inputs: int = Field(ge=1)
    outputs: int = Field(ge=1)
    rank: int | None = Field(None, ge=1)


class ReshapedConfig(Frozen):
    """A network some of whose linear layers have other shapes than its own config says: compression made it smaller.

    Attributes:
        base: the network it was.
        linears: name of the layer, as `torch.nn.Module.named_modules` has it -> its shape.
    """

    kind: Literal["reshaped"]
    base: Annotated[MlpConfig | CustomConfig, Field(discriminator="kind")]
    linears: dict[str, LinearShape]


ModelConfig = Annotated[MlpConfig | CustomConfig | ReshapedConfig, Field(discriminator="kind")]


class ModelSpec(Frozen):
    """Everything needed to build the network again: `model.json` of a model artifact."""

    model: ModelConfig
    input_width: int = Field(ge=1)
    output_width: int = Field(ge=1)
