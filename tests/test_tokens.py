"""Texts as tokens, packed to sequences."""

from __future__ import annotations

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from modelyard.errors import DataError
from modelyard.metrics import LanguageMetrics
from modelyard.task_kinds import NO_TOKEN
from modelyard.token_data import Sequences
from modelyard.train.losses import next_token, token_losses
from modelyard.transform import TokenConfig
from modelyard.transform.tokens import END, Packer, fit_tokenizer, token_bytes
from tests.workbench import PROPERTY

CORPUS = ["the cat sat on the mat", "the dog ate the cat", "a mat is a mat, naïve as it is"] * 5
CONFIG = TokenConfig(vocabulary=300, sequence_length=8)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return fit_tokenizer(CORPUS, CONFIG)


@hypothesis.settings(PROPERTY, max_examples=20)
@hypothesis.given(st.lists(st.text().filter(lambda text: END not in text), max_size=6))
def test_packed_texts_come_back_byte_for_byte(tokenizer: Tokenizer, texts: list[str]):
    """Whatever they hold and however they arrive: each token is foretold once, in order, from the one before it, and
    the bytes of the tokens are the bytes of the texts."""
    one, many = Packer(tokenizer, 8), Packer(tokenizer, 8)
    whole = np.concatenate([one.add(texts), one.finish()])
    apart = np.concatenate([*(many.add([text]) for text in texts), many.finish()])
    np.testing.assert_array_equal(whole, apart)
    if not texts:
        assert not len(whole)
        return
    sequences = Sequences([whole])
    tokens, following = sequences.read(np.arange(len(sequences)))
    np.testing.assert_array_equal(tokens.ravel()[1:], np.where(following == NO_TOKEN, 0, following).ravel()[:-1])
    stream = following[following != NO_TOKEN].tolist()
    end = tokenizer.token_to_id(END)
    assert stream.count(end) == len(texts)
    assert tokenizer.decode(stream, skip_special_tokens=False) == "".join(text + END for text in texts)
    sizes = token_bytes(tokenizer)
    assert sum(sizes[token] for token in stream) == sum(len(text.encode()) for text in texts)


def test_the_same_texts_give_the_same_tokenizer(tokenizer: Tokenizer):
    """Its bytes are part of a data set's digest. It learned words that recur."""
    assert fit_tokenizer(iter(CORPUS), CONFIG).to_str() == tokenizer.to_str()
    assert len(tokenizer.encode("the cat").ids) < len("the cat")
    assert tokenizer.get_vocab_size() <= 300


def test_a_text_with_the_mark_of_its_end_is_refused(tokenizer: Tokenizer):
    """It would be two texts afterwards."""
    with pytest.raises(DataError, match=r"marks the end of texts: 'so it <\|endof"):
        Packer(tokenizer, 8).add(["fine", f"so it {END} goes"])


def test_sequences_are_read_across_files():
    """Numbers run through all files of a split."""
    rows = np.arange(7 * 5, dtype=np.uint16).reshape(7, 5)
    one, parts = Sequences([rows]), Sequences([rows[:3], rows[3:4], rows[4:]])
    chosen = np.array([6, 0, 3, 2])
    for mine, theirs in zip(one.read(chosen), parts.read(chosen), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert len(parts) == 7


def test_losses_of_tokens_are_torchs_and_fillers_count_for_nothing():
    """The mean over a sequence's own tokens, summed over sequences; metrics from scores and from losses are the same,
    bits per byte are nats over ln 2 over bytes."""
    draw = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(2, 3, 4, generator=draw), torch.tensor([[1, 2, 3], [0, NO_TOKEN, NO_TOKEN]])
    plain = [
        torch.nn.functional.cross_entropy(scores[0], targets[0]),
        torch.nn.functional.cross_entropy(scores[1, :1], targets[1, :1]),
    ]
    assert float(next_token(scores, targets)) == pytest.approx(float(sum(plain)))
    raw, known = LanguageMetrics([0, 1, 2, 3]), LanguageMetrics([0, 1, 2, 3])
    raw.update(scores.numpy(), targets.numpy())
    known.update(token_losses(scores, targets).numpy(), targets.numpy())
    np.testing.assert_allclose(raw.state, known.state, rtol=1e-6)
    nats = float(plain[0]) * 3 + float(plain[1])
    found = raw.compute()
    assert found["loss"] == pytest.approx(nats / 4)
    assert found["perplexity"] == pytest.approx(math.exp(nats / 4))
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / 6)
