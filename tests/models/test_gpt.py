"""The decoder: what it computes, how large it becomes, and that `transformers` reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from modelyard.models import GptConfig, ModelSpec
from modelyard.models.build import build_model, load_model, save_model
from modelyard.models.generate import continued
from modelyard.models.gpt import Gpt
from modelyard.models.hugging import CONFIG_FILE, config_json
from modelyard.models.weights import MAX_SHARD_BYTES

SMALL = GptConfig(kind="gpt", layers=2, width=32, heads=4, key_value_heads=2)
VOCABULARY = 50


def network(config: GptConfig = SMALL) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(config, 16, VOCABULARY).eval()


@pytest.mark.parametrize("update", [{}, {"tie_embeddings": False, "rope_theta": 500.0}, {"key_value_heads": None}])
def test_transformers_computes_the_same(tmp_path: Path, update: dict):
    """The folder of a trained model loads as `transformers`' Llama, and both give the same scores, tied or not, with
    shared heads of keys and values or without, from one file or from several."""
    from transformers import AutoModelForCausalLM

    config = SMALL.model_copy(update=update)
    own = network(config)
    spec = ModelSpec(model=config, input_width=16, output_width=VOCABULARY)
    num_files = len(save_model(spec, own.state_dict(), tmp_path, 10_000 if update else MAX_SHARD_BYTES))
    assert num_files == 2 or num_files > 5
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config_json(spec, end_token=0)))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(0, VOCABULARY, (3, 11))
    with torch.no_grad():
        torch.testing.assert_close(own(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(load_model(tmp_path)(tokens), own(tokens))


def test_a_token_knows_nothing_of_those_behind_it():
    """Changing a token changes the scores at its place and after, and none before."""
    made = network()
    tokens = torch.randint(0, VOCABULARY, (1, 12))
    other = tokens.clone()
    other[0, 7] = (other[0, 7] + 1) % VOCABULARY
    with torch.no_grad():
        change = (made(tokens) - made(other)).abs().amax(-1)[0]
    assert change[:7].max() == 0
    assert change[7:].min() > 0


def test_the_shape_of_175_billion_takes_no_memory_on_the_meta_device():
    """A configuration for a cluster can be built and counted anywhere."""
    large = GptConfig(kind="gpt", layers=96, width=12_288, heads=96, hidden=32_768, tie_embeddings=False)
    with torch.device("meta"):
        made = Gpt(large, 50_257)
    assert all(weight.is_meta for weight in made.parameters())
    assert sum(weight.numel() for weight in made.parameters()) == pytest.approx(175e9, rel=0.02)


def test_first_weights_follow_from_the_seed_and_keep_their_size():
    """The same seed, the same weights; norms begin at 1, what adds to the residual stream is drawn smaller."""
    one, two = network().state_dict(), network().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["model.layers.0.mlp.up_proj.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert one["model.layers.0.mlp.down_proj.weight"].std() == pytest.approx(0.01, rel=0.1)
    assert bool((one["model.norm.weight"] == 1).all())


def test_texts_are_continued_alike_each_time():
    """Drawn tokens follow from the seed; the end of a text ends it."""
    made = network()
    one, two = (continued(made, [[1, 2, 3], [4]], new_tokens=8, end=-1) for _ in range(2))
    assert one == two
    assert [len(tokens) for tokens in one] == [11, 9]
    (ended,) = continued(made, [[1, 2, 3]], new_tokens=8, end=one[0][4])
    assert ended == one[0][:5]


@pytest.mark.parametrize(("update", "words"), [
    ({"heads": 5}, "width 32 does not give each of 5 heads an even share"),
    ({"key_value_heads": 3}, "heads 4 is no multiple of key_value_heads 3"),
])  # fmt: skip
def test_heads_that_do_not_divide_are_refused(update: dict, words: str):
    """Said when the preset is read."""
    with pytest.raises(ValidationError, match=words):
        GptConfig.model_validate(SMALL.model_dump() | update)
