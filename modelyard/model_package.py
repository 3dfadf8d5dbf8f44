"""A model as compression hands it on: one folder with every form, the fitted transform and the meaning of outputs.

    package.json     what is in the folder (this module's `PackageSpec`)
    transform.json   the fitted transform
    *.onnx           the forms; for OpenVINO *.xml and *.bin, for torch *.pt2
    items.onnx       of a model for retrieval: what makes the vectors of items, beside the forms, which read queries
    MLmodel          lets `mlflow.pyfunc.load_model` open the folder through `_load_pyfunc` below, without a pickle

Evaluation, the endpoint and MLflow all open it through `ModelPackage`, so a row means the same to each of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.entities import ENTITIES, entities_of
from modelyard.errors import DataError, NotFound
from modelyard.runtime import Runtime, RuntimeSpec, open_runtime
from modelyard.task_kinds import Target, task_kind
from modelyard.transform import RowTransform, TextTransform, read_row_transform
from modelyard.transform.features import plain_text

if TYPE_CHECKING:
    import pandas as pd

PACKAGE_FILE = "package.json"
TRANSFORM_FILE = "transform.json"
MLMODEL_FILE = "MLmodel"
# What a package may consist of. Nothing here runs code when it is read; a pickle does.
PLAIN_SUFFIXES = {".json", ".onnx", ".xml", ".bin", ".safetensors", ".pt2", ".md", ".txt"}
# The form that computes as the trained network does; every package holds it, and evaluation judges others by it.
FLOAT_FORM = "float"
ITEMS_FILE = "items.onnx"
ITEMS_AT_A_TIME = 8192


class PackageSpec(Frozen):
    """What a package holds: its target schema, its forms by name, and the form to serve unless told otherwise; for retrieval
    also the program that reads items."""

    target: Target
    forms: dict[str, RuntimeSpec] = Field(min_length=1)
    default_form: str
    items: RuntimeSpec | None = None


class ModelPackage:
    """One form of a package, loaded."""

    def __init__(
        self, spec: PackageSpec, transform: RowTransform, runtime: Runtime, form: str, items: Runtime | None = None
    ) -> None:
        self.spec = spec
        self.transform = transform
        self.form = form
        self._runtime = runtime
        self._task = task_kind(spec.target.task)
        self._items = items

    @classmethod
    def open(
        cls, folder: Path, form: str | None = None, threads: int | None = None, *, with_items: bool = False
    ) -> ModelPackage:
        """Load a form (the default one, unless named) from a package folder.

        Args:
            threads: None: as many as the form was measured with.
            with_items: load what reads items too, where there is one.

        Raises:
            NotFound: the package has no such form.
        """
        spec = PackageSpec.model_validate_json((folder / PACKAGE_FILE).read_bytes())
        transform = read_row_transform((folder / TRANSFORM_FILE).read_bytes())
        chosen = form or spec.default_form
        if chosen not in spec.forms:
            raise NotFound(f"the package has no form {chosen!r}; it has {', '.join(spec.forms)}")
        items = open_runtime(spec.items, folder, threads) if with_items and spec.items else None
        return cls(spec, transform, open_runtime(spec.forms[chosen], folder, threads), chosen, items)

    def outputs(self, rows: np.ndarray) -> np.ndarray:
        """Raw feature rows (n, width), or rows of tokens (n, t), to raw network outputs (n, k), or (n, t, k), float32."""
        outputs = self.run(self.transform.apply(rows))
        if outputs.ndim == 3 and outputs.shape[1] != rows.shape[1]:  # computed as narrow, or as wide, as need be
            missing = max(0, rows.shape[1] - outputs.shape[1])
            return np.pad(outputs, ((0, 0), (0, missing), (0, 0)))[:, : rows.shape[1]]
        return outputs

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Network input (n, width), as the transform gives it, to raw network outputs (n, k), float32."""
        return self._runtime.run(inputs)

    def item_vectors(self, columns: pd.DataFrame) -> np.ndarray:
        """Of items by their columns, (n, width) float32.

        Raises:
            DataError: the model reads no items, or a column is missing.
        """
        schema = self.spec.target.items
        if self._items is None or schema is None:
            raise DataError(f"a model for {self.spec.target.task} makes no vectors of items; retrieval does")
        inputs = schema.apply_frame(columns)
        parts = [self._items.run(inputs[at : at + ITEMS_AT_A_TIME]) for at in range(0, len(inputs), ITEMS_AT_A_TIME)]
        return np.concatenate(parts) if parts else np.empty((0, self.spec.target.width), np.float32)

    def decode(self, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """Raw outputs (n, k) as named answers, each of n rows."""
        return self._task.decode(self.spec.target, outputs)

    def predict(self, frame: pd.DataFrame, params: dict[str, object] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """MLflow's pyfunc contract: a frame of feature columns to a frame of answers. ``params`` are not used."""
        import pandas as pd

        if self.spec.target.task == "token_classification":
            return pd.DataFrame({ENTITIES: self._entities(list(frame[self.transform.columns[0]]))}, index=frame.index)
        rows = self.transform.apply_frame(frame)
        answers = self.decode(self._runtime.run(rows))
        plain = {name: list(values) if values.ndim > 1 else values for name, values in answers.items()}
        return pd.DataFrame(plain, index=frame.index)

    def _entities(self, texts: list[str]) -> list[list[dict[str, Any]]]:
        transform = self.transform
        assert isinstance(transform, TextTransform)
        answers, plain = self.decode(self.outputs(transform.tokens(texts))), [plain_text(text) for text in texts]
        return entities_of(transform, self.spec.target.classes, plain, answers["tag"], answers["probability"])


def refuse_foreign_files(names: Iterable[str]) -> None:
    """Make sure that a package consists of plain data alone.

    Raises:
        DataError: names the files of other kinds, pickles among them.
    """
    foreign = sorted(name for name in names if name != MLMODEL_FILE and Path(name).suffix not in PLAIN_SUFFIXES)
    if foreign:
        raise DataError(
            f"the package holds {', '.join(foreign[:5])}: only {', '.join(sorted(PLAIN_SUFFIXES))} are accepted, because"
            " a pickle or a library could run code where it is loaded"
        )


def _load_pyfunc(path: str) -> ModelPackage:
    """What MLflow calls; the name is its contract."""
    return ModelPackage.open(Path(path))
