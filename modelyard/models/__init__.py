"""Network definitions, by config. A network knows nothing of ranks, devices, stores or tracking.

    config.py   which network, and the specification that a model artifact keeps of it
    build.py    from a config to a network, and back from an artifact   (imports torch: two seconds)
    mlp.py      a multilayer perceptron
    reshape.py  linear layers with other shapes than the config says

Only configs can be imported from here: forms and presets are checked without torch.
"""

from modelyard.models.config import CustomConfig, LinearShape, MlpConfig, ModelConfig, ModelSpec, ReshapedConfig

__all__ = ["CustomConfig", "LinearShape", "MlpConfig", "ModelConfig", "ModelSpec", "ReshapedConfig"]
