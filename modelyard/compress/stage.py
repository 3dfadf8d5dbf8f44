"""The compress stage as one function: from a model artifact to a package with every form.

The libraries that convert (torch, onnx: several seconds) are imported when something is converted, not before: a
command line or a flow that only reads the config, or finds the package made, must be quick.
"""

from __future__ import annotations

from functools import partial

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.code_version import code_version, installed
from modelyard.compress.config import CompressConfig
from modelyard.datasets import TARGET_FILE
from modelyard.errors import ConfigError
from modelyard.models.config import MODEL_FILE, HuggingFaceConfig, ModelSpec
from modelyard.task_kinds import LANGUAGE_TASKS, Target

LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxscript", "torch")
LANGUAGE_MODELS = (
    "compress does not take language models: a form is judged by one answer a row, and the endpoint serves it so; a text that"
    " is being written is neither. The trained model is a folder that transformers loads, with its weights as safetensors:"
    " llama.cpp, vLLM and others take and quantize it from there"
)
OPTIONAL_LIBRARIES = ("nncf", "openvino")


def compress(
    catalog: Catalog, model_ref: ArtifactRef, dataset_ref: ArtifactRef, config: CompressConfig, origin: Origin
) -> Product:
    """Make a package of a trained model.

    Args:
        catalog: holds both artifacts; takes the package.
        model_ref: a ``model`` artifact.
        dataset_ref: the ``dataset`` whose training rows calibrate, and whose validation rows the conversion is
            checked and timed on.
        config: see `CompressConfig`. With a search, its candidates are tried one after the other in this call; what
            needs the train stage falls, because a room cannot ask for it (the flow can).
        origin: who asks.

    Returns:
        A ``compressed`` artifact, laid out as `modelyard.model_package` says. Sizes in bytes and operators are facts;
        ``latency_ms`` (form -> batch size -> median) and ``parity`` are measurements of this machine.

    Raises:
        ConversionFailed: the network cannot be exported, or computes something else afterwards.
        DataError: the data set lacks columns that the model takes, or rows to calibrate with.
    """
    work = compress_work(catalog, model_ref, dataset_ref, config)
    if config.search is None:
        return catalog.produce(work, partial(_build, catalog, model_ref, dataset_ref, config), origin)
    if found := catalog.find(work.kind, work.key):
        return found
    from modelyard.compress.searched import search_here

    return search_here(catalog, model_ref, dataset_ref, config, origin)


def compress_work(catalog: Catalog, model_ref: ArtifactRef, dataset_ref: ArtifactRef, config: CompressConfig) -> Work:
    """What a package depends on."""
    target = Target.model_validate_json(catalog.read(model_ref, TARGET_FILE))
    if target.task in LANGUAGE_TASKS:
        raise ConfigError("preprocess.task", LANGUAGE_MODELS)
    if target.task == "retrieval" and config.search is not None:
        raise ConfigError(
            "compress.search",
            "a search knows one network, and a package for retrieval holds two; name compress.techniques",
        )
    if target.task == "embedding" and config.search is not None and config.search.networks:
        raise ConfigError(
            "compress.search.networks",
            "networks for vectors are given other forms, and are not made smaller: leave it out",
        )
    spec = ModelSpec.model_validate_json(catalog.read(model_ref, MODEL_FILE))
    return Work(
        kind="compressed",
        config=config.model_dump(mode="json"),
        inputs={"model": model_ref, "dataset": dataset_ref},
        code_version=code_version("modelyard.compress", installed_libraries(spec), spec.factories),
    )


def installed_libraries(spec: ModelSpec) -> list[str]:
    """Libraries that what comes out depends on, the optional ones where they are installed."""
    if isinstance(spec.network, HuggingFaceConfig):
        return [*LIBRARIES, "transformers", *installed(OPTIONAL_LIBRARIES)]
    return [*LIBRARIES, *installed(OPTIONAL_LIBRARIES)]


def _build(
    catalog: Catalog, model_ref: ArtifactRef, dataset_ref: ArtifactRef, config: CompressConfig, attempt: Attempt
) -> None:
    from modelyard.compress.package import build_package
    from modelyard.compress.quiet import MACHINE_SECONDS, building

    with building(MACHINE_SECONDS):  # somebody else's search may be measuring here
        build_package(catalog, model_ref, dataset_ref, config, attempt)
