"""One small protocol over the engines that execute a model file."""

from modelyard.runtime.engines import EngineName, Runtime, RuntimeSpec, open_runtime, preload
from modelyard.runtime.tokens import answer_tokens

__all__ = ["EngineName", "Runtime", "RuntimeSpec", "answer_tokens", "open_runtime", "preload"]
