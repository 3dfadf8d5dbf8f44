"""Trials as artifacts. A trial is kept under its study and its number, so a study finds what it has tried.

What is asked for is written down before it is tried: a trial that was interrupted is gone on with as it was meant, and
its training from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.code_version import code_version
from modelyard.errors import NotFound
from modelyard.tune.study import Ask, Told

# Below `checkpoints`, because that is how long it is of use: housekeeping forgets it with those of other trainings.
ASKED_FILE = "checkpoints/asked.json"


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The trials of one study.

    Attributes:
        study: what they all depend on: the tuning's own configuration, and the one it varies.
        inputs: role -> artifact that all of them begin with.
    """

    catalog: Catalog
    study: Mapping[str, Any]
    inputs: Mapping[str, ArtifactRef]

    def asked(self, number: int) -> Ask | None:
        """The trial of that number as it was asked for; None: nobody has yet."""
        if found := self.found(number):
            return Ask.model_validate(found.manifest.content.facts["ask"])
        try:
            return Ask.model_validate_json(self.catalog.store.get(self._asked_uri(number)))
        except NotFound:
            return None

    def keep(self, asked: Ask) -> Ask:
        """Write down what is about to be tried; what another process asked for first stands."""
        body = asked.model_dump_json().encode()
        if self.catalog.store.put_new(self._asked_uri(asked.number), body):
            return asked
        return Ask.model_validate_json(self.catalog.store.get(self._asked_uri(asked.number)))

    def found(self, number: int) -> Product | None:
        """The trial of that number, if it is over."""
        work = self._work(number)
        return self.catalog.find(work.kind, work.key)

    def commit(self, asked: Ask, told: Told, model: ArtifactRef | None, origin: Origin) -> Product:
        """Keep what came of a trial."""

        def build(attempt: Attempt) -> None:
            attempt.facts.update(
                ask=asked.model_dump(mode="json"), told=told.model_dump(mode="json", exclude={"seconds"})
            )
            attempt.measurements["seconds"] = told.seconds
            if model:
                attempt.facts["model"] = model.digest
                attempt.input_uris["model"] = model.uri

        return self.catalog.produce(self._work(asked.number), build, origin)

    def _work(self, number: int) -> Work:
        return Work(
            kind="trial",
            config={**self.study, "number": number},
            inputs=self.inputs,
            code_version=code_version("modelyard.tune", ["optuna"]),
        )

    def _asked_uri(self, number: int) -> str:
        work = self._work(number)
        return f"{self.catalog.folder(work.kind, work.key)}/{ASKED_FILE}"


def told_by(product: Product) -> Told:
    """What a committed trial came to."""
    seconds = product.manifest.provenance.measurements["seconds"]
    return Told.model_validate({**product.manifest.content.facts["told"], "seconds": seconds})
