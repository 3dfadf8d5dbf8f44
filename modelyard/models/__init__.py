"""Network definitions, by config. A network knows nothing of ranks, devices, stores or tracking.

    config.py   which network, and the specification that a model artifact keeps of it
    build.py    from a config to a network, and back from an artifact   (imports torch: two seconds)
    weights.py  a network's weights as files: one, or several with an index
    mlp.py      a multilayer perceptron
    cnn.py      convolutions over rows of pixels
    gpt.py      a decoder-only transformer
    recommender.py  two towers, for queries and items
    generate.py texts continued by a language model
    hugging.py  the files that let `transformers` load a language model
    transformer.py networks of `transformers`, with their weights
    reshape.py  layers with other shapes than the config says; simulate.py: layers that compute as their int8 form will

Only configs can be imported from here: forms and presets are checked without torch.
"""

from modelyard.models.config import (
    CnnConfig,
    CustomConfig,
    GptConfig,
    HuggingFaceConfig,
    LinearShape,
    MlpConfig,
    ModelConfig,
    ModelSpec,
    RecommenderConfig,
    ReshapedConfig,
)

__all__ = [
    "CnnConfig",
    "CustomConfig",
    "GptConfig",
    "HuggingFaceConfig",
    "LinearShape",
    "MlpConfig",
    "ModelConfig",
    "ModelSpec",
    "RecommenderConfig",
    "ReshapedConfig",
]
