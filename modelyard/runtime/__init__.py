"""One small protocol over the engines that execute a model file."""

from modelyard.runtime.engines import Runtime, RuntimeSpec, open_runtime, preload

__all__ = ["Runtime", "RuntimeSpec", "open_runtime", "preload"]
