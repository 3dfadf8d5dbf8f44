"""Texts as people really write them: letters that slip, words left out, capitals. For models that read texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

DISTURBED_FRACTION = 0.1  # of the words
SLIPS = ("swap", "drop", "double")

TextDisturbance = Callable[[Sequence[str], np.random.Generator], list[str]]


def typos(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """A slip of the fingers in a tenth of the words, at least one a text: two letters swapped, one left out, one
    doubled."""
    return [_with_typos(text, rng) for text in texts]


def missing_words(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """A tenth of the words left out, never all of them."""
    return [_without_words(text, rng) for text in texts]


def capitals(texts: Sequence[str], rng: np.random.Generator) -> list[str]:  # noqa: ARG001 (nothing is drawn)
    """Written throughout in capital letters."""
    return [text.upper() for text in texts]


TEXT_DISTURBANCES: Mapping[str, TextDisturbance] = {
    "typos": typos,
    "missing words": missing_words,
    "capitals": capitals,
}


def _with_typos(text: str, rng: np.random.Generator) -> str:
    words = text.split(" ")
    long = [number for number, word in enumerate(words) if len(word) > 1]
    if not long:
        return text
    for number in rng.choice(long, max(1, round(DISTURBED_FRACTION * len(long))), replace=False):
        words[number] = _slipped(words[number], rng)
    return " ".join(words)


def _slipped(word: str, rng: np.random.Generator) -> str:
    at = int(rng.integers(0, len(word) - 1))
    match SLIPS[rng.integers(0, len(SLIPS))]:
        case "swap":
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case "drop":
            return word[:at] + word[at + 1 :]
        case _:
            return word[: at + 1] + word[at:]


def _without_words(text: str, rng: np.random.Generator) -> str:
    words = text.split(" ")
    kept = rng.random(len(words)) >= DISTURBED_FRACTION
    return " ".join(word for word, stays in zip(words, kept, strict=True) if stays) if kept.any() else text
