"""Network definitions, by config. A network knows nothing of ranks, devices, stores or tracking.

    config.py   which network, and the specification that a model artifact keeps of it
    build.py    from a config to a network, and back from an artifact   (imports torch: two seconds)
    mlp.py      a multilayer perceptron

Only configs can be imported from here: forms and presets are checked without torch.
"""

from modelyard.models.config import CustomConfig, MlpConfig, ModelConfig, ModelSpec

__all__ = ["CustomConfig", "MlpConfig", "ModelConfig", "ModelSpec"]
