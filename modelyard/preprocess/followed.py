"""Where characters of a text are after it was cleaned: spans over it have to move along.

The steps are those of `modelyard.preprocess.clean.normalised`, done once more, character by character, and only for texts
that they change. What cannot be followed is said, never guessed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from modelyard.preprocess.sections import TextStep

# Unicode's White_Space, as the cleaning's regular expression has it; Python's isspace() knows four more.
WHITE_SPACE = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {
    chr(n) for n in range(0x2000, 0x200B)
}
KEPT_CONTROLS = "\t\n\r"
SIGMA, FINAL_SIGMA = "\u03c3", "\u03c2"


class Piece(NamedTuple):
    """A character on its way, and those of the raw text that it is made of; several may be made of the same ones."""

    text: str
    start: int
    end: int


class Followed:
    """The characters of a cleaned text with their places in the raw one.

    Attributes:
        sources: for each cleaned character where its raw ones begin and end.
    """

    def __init__(self, sources: Sequence[tuple[int, int]]) -> None:
        self.sources = sources

    def moved(self, start: int, end: int) -> tuple[int, int] | None:
        """A raw span's place in the cleaned text; None where nothing is left of it, or its edge fell into a character."""
        inside = [at for at, (begin, behind) in enumerate(self.sources) if begin < end and behind > start]
        if not inside or inside[-1] - inside[0] + 1 != len(inside):
            return None
        if any(self.sources[at][0] < start or self.sources[at][1] > end for at in (inside[0], inside[-1])):
            return None
        return inside[0], inside[-1] + 1


def follow(raw: str, cleaned: str, steps: Sequence[TextStep]) -> Followed | None:
    """Which raw characters each cleaned one comes from; None where that cannot be told."""
    pieces = [Piece(character, at, at + 1) for at, character in enumerate(raw)]
    if "nfc" in steps:
        pieces = _composed(pieces)
    if "control" in steps:
        pieces = [one for one in pieces if one.text in KEPT_CONTROLS or unicodedata.category(one.text) != "Cc"]
    if "whitespace" in steps:
        pieces = _spaced(pieces)
    if "lower" in steps:
        pieces = [one._replace(text=one.text.lower()) for one in pieces]
    found = "".join(one.text for one in pieces)
    # One letter is another in lower case where a word ends.
    if found.replace(FINAL_SIGMA, SIGMA) != cleaned.replace(FINAL_SIGMA, SIGMA):
        return None
    return Followed([(one.start, one.end) for one in pieces for _ in one.text])


def _composed(pieces: Sequence[Piece]) -> list[Piece]:
    """Characters that become one spelling together stay together."""
    found: list[Piece] = []
    for one in pieces:
        if found and not _stands_alone(found[-1].text, one.text):
            found[-1] = Piece(found[-1].text + one.text, found[-1].start, one.end)
        else:
            found.append(one)
    return [one._replace(text=character) for one in found for character in unicodedata.normalize("NFC", one.text)]


def _stands_alone(before: str, character: str) -> bool:
    if before.isascii() and character.isascii():
        return True
    if unicodedata.combining(character):
        return False
    both = unicodedata.normalize("NFC", before + character)
    return both == unicodedata.normalize("NFC", before) + unicodedata.normalize("NFC", character)


def _spaced(pieces: Sequence[Piece]) -> list[Piece]:
    """One space for each run of white space, none at the ends."""
    found: list[Piece] = []
    for one in pieces:
        if one.text not in WHITE_SPACE:
            found.append(one)
        elif found and found[-1].text == " ":
            found[-1] = found[-1]._replace(end=one.end)
        elif found:
            found.append(Piece(" ", one.start, one.end))
    return found[:-1] if found and found[-1].text == " " else found
