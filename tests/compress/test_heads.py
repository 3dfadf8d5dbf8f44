"""Attention heads: which matter, and networks without the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from modelyard.catalog import Origin
from modelyard.compress import Budget, CompressConfig, DropLimit, MeasureConfig, PruneHeads, SearchConfig, candidates
from modelyard.compress.candidates import Bench
from modelyard.compress.heads import attentions, importances, kept_heads, prune_heads_
from modelyard.compress.networks import multiply_accumulates, parameters, shrink_
from modelyard.compress.outcomes import Recipe
from modelyard.compress.workshop import Workshop
from modelyard.errors import ConversionFailed
from modelyard.models import GptConfig, HuggingFaceConfig
from modelyard.models.gpt import Gpt
from modelyard.models.reshape import reshape_
from modelyard.models.transformer import Transformer, build_transformer
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import TrainConfig, train
from tests.textbench import network_folder, quick_text_model, text_config, text_dataset
from tests.workbench import own_catalog

KEYS = {
    "model_type": "bert", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 16, "max_position_embeddings": 16, "pad_token_id": 0,
}  # fmt: skip
ROWS = torch.randint(1, 50, (24, 9), generator=torch.Generator().manual_seed(0))
ROWS[::3, 6:] = -1  # shorter texts
TARGETS = torch.arange(24) % 3


def bert() -> Transformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = HuggingFaceConfig(kind="huggingface", auto_class="AutoModelForSequenceClassification", config=KEYS)
        return build_transformer(config, 3).eval()


def gpt() -> Gpt:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Gpt(GptConfig(kind="gpt", layers=2, width=32, heads=4, key_value_heads=2), 50).eval()


def linear(network: nn.Module, name: str) -> nn.Linear:
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def scores(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of the last token, as classes."""
    return functional.cross_entropy(outputs[:, -1, :3] * 20, targets, reduction="sum")


def test_a_bert_without_heads_is_physically_smaller_and_can_be_built_again():
    """Queries, keys, values and the layer that reads them are narrower; shapes alone lead to a network that takes the weights."""
    whole, smaller = bert(), bert()
    shapes = shrink_(smaller, PruneHeads(fraction=0.5), ROWS, TARGETS, "cross_entropy")
    for layer in range(2):
        inner = smaller.get_submodule(f"network.bert.encoder.layer.{layer}.attention")
        width = linear(inner, "self.query").out_features
        assert width % 8 == 0
        assert {linear(inner, f"self.{name}").out_features for name in ("key", "value")} == {width}
        assert linear(inner, "output.dense").in_features == width
    assert parameters(smaller) < parameters(whole)
    assert multiply_accumulates(smaller, ROWS.clamp(min=1)) < multiply_accumulates(whole, ROWS.clamp(min=1))
    again = reshape_(bert(), shapes)
    again.load_state_dict(smaller.state_dict())
    torch.testing.assert_close(again.eval()(ROWS), smaller(ROWS))


def test_heads_that_say_nothing_go_first_and_unnoticed():
    """Their values are zero: they have no importance, and answers stay what they were."""
    network = bert()
    with torch.no_grad():
        for layer, head in ((0, 2), (1, 0), (1, 3)):
            value = linear(network, f"network.bert.encoder.layer.{layer}.attention.self.value")
            value.weight[head * 8 : head * 8 + 8] = 0
            value.bias[head * 8 : head * 8 + 8] = 0
        expected = network(ROWS)
    shapes = shrink_(network, PruneHeads(fraction=0.375), ROWS, TARGETS, "cross_entropy")
    assert shapes["network.bert.encoder.layer.0.attention.self.query"].outputs == 24
    assert shapes["network.bert.encoder.layer.1.attention.self.query"].outputs == 16
    torch.testing.assert_close(network(ROWS), expected, rtol=1e-4, atol=1e-5)


def test_importance_is_what_the_loss_feels():
    """The derivative by a head's gate, held against two losses a little apart; queries that share keys are one head."""
    network, row, target = gpt(), ROWS[1:2], TARGETS[1:2]
    found = attentions(network)
    assert [(one.heads, one.width, one.read_width) for one in found] == [(2, 8, 16)] * 2
    said = importances(network, found, row, target, scores)
    for one in found:
        weight = linear(network, one.output).weight
        slopes = []
        for head in range(2):
            losses, kept = [], weight.detach().clone()
            for gate in (1.05, 0.95):
                with torch.no_grad():
                    weight[:, head * 16 : head * 16 + 16] = gate * kept[:, head * 16 : head * 16 + 16]
                    losses.append(float(scores(network(row), target)))
                    weight.copy_(kept)
            slopes.append(abs(losses[0] - losses[1]))
        expected = torch.tensor(slopes) / torch.tensor(slopes).norm()
        torch.testing.assert_close(said[one.output], expected, rtol=0.02, atol=0.02)


def test_grouped_queries_go_with_their_keys():
    """Of a network whose queries share keys, whole groups go; without a bias nothing takes their place."""
    network = gpt()
    found = attentions(network)
    kept = {one.output: torch.tensor([1]) for one in found}
    with torch.no_grad():
        changed = prune_heads_(network, found, kept, ROWS.clamp(min=1))
    assert len(changed) == 8
    assert linear(network, "model.layers.0.self_attn.q_proj").weight.shape == (16, 32)
    assert linear(network, "model.layers.0.self_attn.k_proj").weight.shape == (8, 32)


def test_every_layer_keeps_its_most_important_head():
    """However little it matters beside other layers'."""
    importance = {"a": torch.tensor([0.1, 0.2]), "b": torch.tensor([0.8, 0.9, 0.95])}
    kept = kept_heads(importance, 0.8)
    assert {name: heads.tolist() for name, heads in kept.items()} == {"a": [1], "b": [2]}


class Counting(nn.Module):
    """An attention by its names, which counts its heads."""

    head_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        states = functional.one_hot(tokens.clamp(min=0) % 8, 8).float()
        mixed = self.q_proj(states) * self.k_proj(states) + self.v_proj(states)
        return self.o_proj(mixed).mean(dim=1) * self.q_proj.out_features


@pytest.mark.parametrize(
    ("odd", "loss", "sentence"),
    [
        (nn.Linear(9, 3), "cross_entropy", "Linear has no attention whose queries, keys and values are known"),
        (Counting(), "cross_entropy", "Counting computes something else with fewer heads"),
        (Counting(), "next_token", "not known for the loss next_token"),
    ],
)
def test_what_has_no_heads_to_spare_is_said(odd: nn.Module, loss: str, sentence: str):
    """A reason, not a wrong network."""
    with pytest.raises(ConversionFailed, match=sentence):
        shrink_(odd.eval(), PruneHeads(fraction=0.5), ROWS, TARGETS, loss)


@pytest.mark.soak
def test_heads_go_and_the_train_stage_recovers(store: Store, settings: Settings, tmp_path: Path):
    """From a trained network of texts to a candidate with half of the heads, fine-tuned by the train stage."""
    del store
    catalog, origin = own_catalog(settings), Origin()
    source = network_folder(tmp_path / "tiny")
    dataset = text_dataset(catalog, text_config(f"file://{source}"))
    model = quick_text_model(catalog, dataset, source)
    search = SearchConfig(budget=Budget(max_drop={"accuracy": DropLimit(absolute=0.5)}))
    config = CompressConfig(search=search, measure=MeasureConfig(repeats=3, batches=[1]))
    technique = PruneHeads(fraction=0.5)
    with Workshop() as workshop:
        bench = Bench(catalog=catalog, workshop=workshop, model=model, dataset=dataset, config=config)
        smaller = candidates.shrink(bench, technique, origin).ref
        fine_tune = TrainConfig(max_epochs=3, batch_size=16, ranks=1)
        recovered = train(catalog, dataset, fine_tune, origin, init=smaller).ref
        whole = candidates.outcome_of(candidates.build(bench, Recipe(), model, None, origin).manifest)
        pruned = candidates.build(bench, Recipe(network=technique), recovered, None, origin)
    built = candidates.outcome_of(pruned.manifest)
    assert built.parameters < whole.parameters
    assert built.macs < whole.macs
    assert built.drops["accuracy"].drop < 0.1
