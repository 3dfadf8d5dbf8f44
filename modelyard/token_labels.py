"""Labels of a text's tokens: from spans of characters to tags of tokens, and from tags back to spans.

Tags are IOB2 (Ramshaw and Marcus 1995, in the form of Tjong Kim Sang and Veenstra 1999): ``O``, then ``B-`` and ``I-`` of
each label. Which token carries a tag: the first one of each word that the tokenizer cuts out, or every one
(`Subwords`). The others, and marks such as the beginning of a text, have none; nobody looks at what a network says there.

Spans count Unicode characters from 0, as Python does; the end is the first one behind.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from modelyard.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Encoding

Subwords = Literal["first", "every"]
NO_TAG = -100  # as a target: this token carries none; torch's cross-entropy leaves it out
OUTSIDE, BEGIN, INSIDE = "O", "B-", "I-"


class Span(NamedTuple):
    """Some characters of a text and what they are."""

    start: int
    end: int
    label: str


class Place(NamedTuple):
    """A token that carries a tag, and the characters that the tag is about."""

    token: int
    start: int
    end: int


class Chunks(NamedTuple):
    """Entities among tags, four arrays (m,): row, first and last token, number of the label."""

    row: np.ndarray
    first: np.ndarray
    last: np.ndarray
    label: np.ndarray


def tags_for(labels: Sequence[str]) -> list[str]:
    """The classes of a network for these labels: ``O``, then two for each. Tag 2i + 1 begins label i, 2i + 2 is inside."""
    return [OUTSIDE, *(f"{sign}{label}" for label in labels for sign in (BEGIN, INSIDE))]


def labels_of(tags: Sequence[str | int]) -> list[str]:
    """The labels that `tags_for` made these of."""
    return [str(tag).removeprefix(BEGIN) for tag in tags[1::2]]


def spans_json(spans: Sequence[Span]) -> str:
    """Spans as a data set keeps them: the same spans are the same text."""
    told = [span._asdict() for span in sorted(spans)]
    return json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def spans_of_json(text: str) -> list[Span]:
    """What `spans_json` wrote."""
    return [Span(**one) for one in json.loads(text)]


def places(encoding: Encoding, text: str, subwords: Subwords) -> list[Place]:
    """The tokens of a text that carry tags, in their order. A word's place reaches over all of its tokens."""
    found: list[Place] = []
    last_word = None
    for token, ((start, end), word) in enumerate(zip(encoding.offsets, encoding.word_ids, strict=True)):
        if word is None:  # a mark of the tokenizer's own
            continue
        own = text[start:end].strip()
        if not own:
            continue
        begin = start + text[start:end].index(own)  # some tokens have the space before a word in them
        if subwords == "first" and word == last_word:
            found[-1] = found[-1]._replace(end=begin + len(own))
        else:
            found.append(Place(token, begin, begin + len(own)))
        last_word = word
    return found


def tags_at(spans: Sequence[Span], where: Sequence[Place], numbers: Mapping[str, int]) -> list[int]:
    """The tag of each place.

    Args:
        numbers: label -> its number.

    Raises:
        DataError: a span begins or ends where no place does, or two meet in one place.
    """
    begins = {place.start: at for at, place in enumerate(where)}
    ends = {place.end: at for at, place in enumerate(where)}
    tags = [0] * len(where)
    for span in spans:
        first, last = begins.get(span.start), ends.get(span.end)
        if first is None or last is None or last < first or any(tags[first : last + 1]):
            raise DataError(f"the span {span.start} to {span.end} does not begin and end with tokens")
        tags[first] = 2 * numbers[span.label] + 1
        tags[first + 1 : last + 1] = [2 * numbers[span.label] + 2] * (last - first)
    return tags


def chunks(tags: np.ndarray) -> Chunks:
    """Entities among tags (n, t), `NO_TAG` where there is none.

    As conlleval of the shared task CoNLL-2000 reads them (Tjong Kim Sang and Buchholz 2000): an inside tag that follows
    nothing of its label begins one too.
    """
    rows, columns = np.nonzero(tags != NO_TAG)
    values = tags[rows, columns]
    labels = (values + 1) // 2
    same = np.zeros(len(rows), dtype=bool)  # goes on from the token before
    same[1:] = (rows[1:] == rows[:-1]) & (labels[1:] == labels[:-1]) & (values[1:] % 2 == 0)
    inside = labels > 0
    starts = inside & ~same
    ends = inside & ~np.append(same[1:], False)
    return Chunks(rows[starts], columns[starts], columns[ends], labels[starts] - 1)


def words_and_tags(words: Sequence[str], tags: Sequence[str]) -> tuple[str, list[Span]]:
    """A text that was cut into words already, put together with one space between them, and the spans of its tags: IOB2,
    or IOB1, whose entities begin with an inside tag.

    Raises:
        DataError: something else than a tag, or another number of tags.
    """
    if len(words) != len(tags):
        raise DataError("not one tag for each word")
    spans: list[Span] = []
    begin, before = 0, OUTSIDE
    for word, tag in zip(words, tags, strict=True):
        label, end = tag[2:], begin + len(word)
        if tag != OUTSIDE and not (tag.startswith((BEGIN, INSIDE)) and label):
            raise DataError("not a BIO tag")
        if tag.startswith(INSIDE) and before[2:] == label:
            spans[-1] = spans[-1]._replace(end=end)
        elif tag != OUTSIDE:
            spans.append(Span(begin, end, label))
        begin, before = end + 1, tag
    return " ".join(words), spans


def overlap(spans: Sequence[Span]) -> bool:
    """Whether two of some spans, in their order, share a character."""
    return any(one.end > other.start for one, other in itertools.pairwise(spans))
