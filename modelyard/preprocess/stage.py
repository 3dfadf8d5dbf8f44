"""The preprocess stage: one pass over the sources, one over the clean rows; everything else in the files beside it.

intake   read, check, hash each row; refused rows to the quarantine, the others to the local disk
output   drop duplicates, split, write shards, measure what the transform and the report need
"""

from __future__ import annotations

from contextlib import closing
from functools import partial

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.code_version import code_version
from modelyard.errors import DataError
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.formats import detect
from modelyard.preprocess.intake import Intake
from modelyard.preprocess.output import write_output
from modelyard.preprocess.prefetch import ahead
from modelyard.preprocess.protect import Protector
from modelyard.preprocess.schema import check_columns
from modelyard.preprocess.snapshot import Source, read_snapshot
from modelyard.preprocess.sources import batches, columns_of, fetched

LIBRARIES = ("numpy", "polars", "pyarrow")


def preprocess(
    catalog: Catalog,
    snapshot_ref: ArtifactRef,
    config: PreprocessConfig,
    origin: Origin,
    sensitive_key: bytes | None = None,
) -> Product:
    """Make a data set from a snapshot.

    Args:
        catalog: holds the snapshot; takes the data set.
        snapshot_ref: a ``snapshot`` artifact.
        config: see `PreprocessConfig`.
        origin: who asks.
        sensitive_key: for the columns that are to be hashed.

    Returns:
        A ``dataset`` artifact, laid out as `modelyard.datasets` says. Rows read = kept + rejected + duplicates.

    Raises:
        DataError: the data cannot be used as it is: file, column and what to do are in the sentence.
        ConfigError: the config speaks of a column that plays no such part.
    """
    protector = Protector(config, sensitive_key)
    fingerprint = protector.fingerprint()
    work = Work(
        kind="dataset",
        config=config.model_dump(mode="json"),
        inputs={"snapshot": snapshot_ref},
        code_version=code_version("modelyard.preprocess", _libraries(config)),
        occasion={"key": fingerprint} if fingerprint else {},
    )
    return catalog.produce(work, partial(_build, catalog, snapshot_ref, config, protector), origin)


def _libraries(config: PreprocessConfig) -> list[str]:
    """Those whose arithmetic shows in the result."""
    reduces = config.transform.components is not None or config.transform.select.mutual_information is not None
    reads = config.task == "language_modelling"
    return [*LIBRARIES, *(["scikit-learn"] if reduces else []), *(["tokenizers"] if reads else [])]


def _build(
    catalog: Catalog, snapshot_ref: ArtifactRef, config: PreprocessConfig, protector: Protector, attempt: Attempt
) -> None:
    folder, sources = read_snapshot(catalog, snapshot_ref)
    with closing(Intake(attempt, config, protector)) as intake:
        for source in sources:
            _take_in(intake, attempt, folder, source, config)
        taken = intake.finish()
        if intake.plan is None:
            raise DataError(f"{folder}: no rows in {len(sources)} files; check the data set's URI")
        write_output(attempt, config, intake.plan, taken)


def _take_in(intake: Intake, attempt: Attempt, folder: str, source: Source, config: PreprocessConfig) -> None:
    with fetched(attempt.store, folder, source, attempt.scratch) as path:
        kind = detect(path, source.name, config.read)
        present = columns_of(path, source.name, kind, config.read)
        check_columns(config, source.name, present)
        wanted = intake.wanted(present)
        # The text of a row that could not be told into columns may hold anything.
        show_torn = not any(rule.sensitive for rule in config.columns.values())
        raw = batches(path, source.name, kind, wanted, config.read, show_torn=show_torn)
        for batch in ahead(raw):
            intake.add(batch, source.name)
