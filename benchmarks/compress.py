"""What compression costs and gains: a 784-128-10 perceptron and a convolutional network through the train stage, and a
sentence transformer; Olive and NNCF beside it on the same float files; and whether searches decide the same again.

Every part is a benchmark of its own: ``--part minilm``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks import compress_images, compress_minilm, compress_steady
from benchmarks.figures import Findings
from benchmarks.installation import Installation
from commands.parts import STORE
from modelyard.catalog import Catalog
from modelyard.storage import Store


def run(installation: Installation, quick: bool, parts: Sequence[str] = ()) -> Findings:
    """Measure all parts, or those that are named."""
    found = Findings()
    for name, measure in PARTS.items():
        if not parts or name in parts:
            part = measure(installation, quick)
            found.figures += part.figures
            found.notes += part.notes
    return found


def _images(network: str) -> Callable[[Installation, bool], Findings]:
    def measure(installation: Installation, quick: bool) -> Findings:
        catalog = Catalog(Store(installation.up([STORE])))
        return compress_images.run(catalog, installation.scratch, network, quick)

    return measure


def _minilm(installation: Installation, quick: bool) -> Findings:
    return compress_minilm.run(installation.scratch, quick)


def _steady(installation: Installation, quick: bool) -> Findings:
    catalog = Catalog(Store(installation.up([STORE])))
    return compress_steady.run(catalog, installation.scratch, quick)


PARTS: dict[str, Callable[[Installation, bool], Findings]] = {
    "perceptron": _images(compress_images.PERCEPTRON),
    "convolutional": _images(compress_images.CONVOLUTIONAL),
    "minilm": _minilm,
    "steady": _steady,
}
