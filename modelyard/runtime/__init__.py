"""One small protocol over the engines that execute a model file."""

from modelyard.runtime.engines import EngineName, Runtime, RuntimeSpec, open_runtime, preload

__all__ = ["EngineName", "Runtime", "RuntimeSpec", "open_runtime", "preload"]
