"""Which network to train: one config class a kind, told apart by `kind`. Torch is not imported here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen

MODEL_FILE = "model.json"

Activation = Literal["relu", "gelu", "tanh", "silu", "identity"]


class MlpConfig(Frozen):
    """Fully connected layers; ``hidden_sizes=(128,)`` on 784 inputs and 10 classes is 784-128-10."""

    kind: Literal["mlp"] = "mlp"
    hidden_sizes: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = (128,)
    dropout: float = Field(0.2, ge=0, lt=1)
    activation: Activation = "relu"


class CnnConfig(Frozen):
    """Convolutions, each followed by a pooling that halves the image, then a hidden layer, for rows of pixels.

    Attributes:
        image: height and width that a row of pixels stands for.
        image_channels: numbers a pixel: 1 for grey, 3 for colours.
        channels: of each convolution in turn.
        kernel_size: side of each convolution's window, odd.
        hidden: width of the layer between convolutions and outputs.
        dropout: behind that layer.
    """

    kind: Literal["cnn"]
    image: tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]]
    image_channels: int = Field(1, ge=1, le=64)
    channels: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = Field((16, 32), min_length=1)
    kernel_size: int = Field(3, ge=1, le=31)
    hidden: int = Field(128, ge=1, le=1_000_000)
    dropout: float = Field(0.2, ge=0, lt=1)
    activation: Activation = "relu"

    @model_validator(mode="after")
    def _image_is_large_enough(self) -> Self:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} is even: a window needs a middle")
        if not self.num_positions:
            height, width = self.image
            raise ValueError(
                f"{len(self.channels)} convolutions halve {height} x {width} pixels to nothing: fewer channels"
            )
        return self

    @property
    def input_width(self) -> int:
        """Numbers a row."""
        return self.image[0] * self.image[1] * self.image_channels

    @property
    def num_positions(self) -> int:
        """Pixels that are left of the image behind the last pooling."""
        halved = 2 ** len(self.channels)
        return (self.image[0] // halved) * (self.image[1] // halved)


class GptConfig(Frozen):
    """A decoder-only transformer over tokens; its vocabulary and sequence length follow from the data set.

    The defaults have some 4 million weights with a vocabulary of 4,096; layers 96, width 12,288 and heads 96 are the
    shape of 175 billion.

    Attributes:
        width: of the hidden states; a multiple of ``heads``, each of which gets an even share.
        key_value_heads: shared by groups of heads; None: as many as heads.
        hidden: inner width of the feed-forward part; None: 8/3 of ``width``, rounded up to 64.
        tie_embeddings: one matrix embeds tokens and scores them.
    """

    kind: Literal["gpt"]
    layers: int = Field(4, ge=1, le=1000)
    width: int = Field(256, ge=2, le=1_000_000)
    heads: int = Field(4, ge=1)
    key_value_heads: int | None = Field(None, ge=1)
    hidden: int | None = Field(None, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    rope_theta: float = Field(10_000.0, gt=1)
    norm_epsilon: float = Field(1e-6, gt=0)
    tie_embeddings: bool = True

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} does not give each of {self.heads} heads an even share")
        if self.heads % self.num_key_value_heads:
            raise ValueError(f"heads {self.heads} is no multiple of key_value_heads {self.key_value_heads}")
        return self

    @property
    def num_key_value_heads(self) -> int:
        return self.key_value_heads or self.heads

    @property
    def num_hidden(self) -> int:
        return self.hidden or -(-8 * self.width // (3 * 64)) * 64


class RecommenderConfig(Frozen):
    """Two towers (Covington et al., RecSys 2016; Yi et al., RecSys 2019): a table of vectors for each category, beside the
    numbers into fully connected layers; one tower reads a query, the other an item.

    Attributes:
        vector_width: numbers of the vectors that both towers make.
        embedding_width: of a table's vectors.
        hidden_sizes: of each tower.
        normalise: vectors to length 1, so that their dot product is the cosine.
        sparse: a step moves only those rows of a table that its batch names. Adam's averages of the others wait too
            (torch's SparseAdam), so large tables cost what a batch costs. Goes with adam, adagrad and plain sgd.
        query_tables, item_tables: for each input of a tower the rows of its table, 0 for a number; they follow from the
            data set, and are left empty in a config.
    """

    kind: Literal["recommender"]
    vector_width: int = Field(32, ge=1, le=65_536)
    embedding_width: int = Field(32, ge=1, le=65_536)
    hidden_sizes: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = (64,)
    dropout: float = Field(0.0, ge=0, lt=1)
    activation: Activation = "relu"
    normalise: bool = True
    sparse: bool = True
    query_tables: tuple[int, ...] = ()
    item_tables: tuple[int, ...] = ()


class CustomConfig(Frozen):
    """A network of the user's own.

    ``factory`` is ``module:function``, importable where flows run; it is called with ``input_width``,
    ``output_width`` and ``options``, and returns a `torch.nn.Module` from (n, input_width) to (n, output_width); for
    language modelling and token classification from tokens (n, t) int64 to (n, t, output_width).
    """

    kind: Literal["custom"]
    factory: str = Field(pattern=r"^[\w.]+:\w+$")
    options: dict[str, Any] = Field(default_factory=dict)


Pooling = Literal["mean", "cls", "max", "last"]

# What a task makes of a network: the class of `transformers` that has the right end to it.
AUTO_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "embedding": "AutoModel",
    "token_classification": "AutoModelForTokenClassification",
    "masked_language_modelling": "AutoModelForMaskedLM",
}


class HuggingFaceConfig(Frozen):
    """A network of the library `transformers` over the tokens of a text, beginning with the weights that it comes with.

    Attributes:
        source: the folder that holds `config.json` and `*.safetensors`: ``file:///...``, ``s3://...``, or
            ``hub:owner/name@revision`` where the installation allows a hub. Empty: random weights, by ``config`` alone.
        auto_class: the class of `transformers` that builds it; empty: the one that the task takes.
        config: keys of `config.json` that shall be otherwise than in the source, such as dropout; without a source all
            of them, ``model_type`` first. In a trained model: the whole of it.
        pooling: for embedding: how the vectors of a text's tokens become its own; empty: as the source says.
        normalise: for embedding: to length 1; None: as the source says.
    """

    kind: Literal["huggingface"]
    source: str = ""
    auto_class: str = Field("", pattern=r"^(AutoModel\w*)?$")
    config: dict[str, Any] = Field(default_factory=dict)
    pooling: Pooling | Literal[""] = ""
    normalise: bool | None = None

    @model_validator(mode="after")
    def _is_something(self) -> Self:
        if not self.source and "model_type" not in self.config:
            raise ValueError("huggingface needs a source (a folder with config.json), or model_type in config")
        return self


class LinearShape(Frozen):
    """The shape of a linear layer, or of a convolution.

    Attributes:
        inputs, outputs: of a convolution its channels.
        rank: of a linear layer: it is two layers, (inputs -> rank) without a bias and (rank -> outputs); None: it is one.
    """

    inputs: int = Field(ge=1)
    outputs: int = Field(ge=1)
    rank: int | None = Field(None, ge=1)


class ReshapedConfig(Frozen):
    """A network some of whose layers are others than its own config says: compression made it smaller.

    Attributes:
        base: the network it was.
        linears: name of the layer, as `torch.nn.Module.named_modules` has it -> its shape.
        simulated: names of layers that compute in float what their int8 form will compute.
    """

    kind: Literal["reshaped"]
    base: Annotated[
        MlpConfig | CnnConfig | GptConfig | HuggingFaceConfig | RecommenderConfig | CustomConfig,
        Field(discriminator="kind"),
    ]
    linears: dict[str, LinearShape]
    simulated: list[str] = Field(default_factory=list)


ModelConfig = Annotated[
    MlpConfig | CnnConfig | GptConfig | HuggingFaceConfig | RecommenderConfig | CustomConfig | ReshapedConfig,
    Field(discriminator="kind"),
]


class ModelSpec(Frozen):
    """Everything needed to build the network again: `model.json` of a model artifact.

    Attributes:
        input_width: inputs a row; for tokens the length of the sequences it was trained on, at most.
        output_width: outputs a row; of a language model the size of the vocabulary.
    """

    model: ModelConfig
    input_width: int = Field(ge=1)
    output_width: int = Field(ge=1)

    @property
    def network(self) -> MlpConfig | CnnConfig | GptConfig | HuggingFaceConfig | RecommenderConfig | CustomConfig:
        """What it was before compression gave some of its layers other shapes."""
        return self.model.base if isinstance(self.model, ReshapedConfig) else self.model

    @property
    def factories(self) -> list[str]:
        """The user's code that the network is built by."""
        return [self.network.factory] if isinstance(self.network, CustomConfig) else []
