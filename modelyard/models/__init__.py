"""Network definitions, by config. A network knows nothing of ranks, devices, stores or tracking."""

from modelyard.models.build import build_model, load_model, save_model
from modelyard.models.config import CustomConfig, MlpConfig, ModelConfig

__all__ = ["CustomConfig", "MlpConfig", "ModelConfig", "build_model", "load_model", "save_model"]
