"""The ledger: which version was live with which weight from when to when, by whom, on what evidence.

Read from revisions alone. They are never changed and never deleted, so this reaches back to the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from modelyard.artifacts import Frozen
from modelyard.errors import NotFound
from modelyard.revisions import Decision, Revision, ServedVersion, revisions_since
from modelyard.storage import Store


class Span(Frozen):
    """One version of a model with one weight, from one revision to the one that changed it.

    Attributes:
        begin: when the revision was written, ISO 8601 in UTC. A replica follows within its poll, or milliseconds.
        end: when another one changed it; None: it is so now.
        weight: percent of the model's requests.
        revision: the one that began it.
        author: who wrote that: a flow run, or an endpoint that judged.
        decision: the evidence.
    """

    model: str
    version: str
    digest: str
    weight: float
    begin: str
    end: str | None
    revision: int
    author: str
    reason: str
    decision: Decision | None


def history(store: Store, endpoint: str, model: str = "") -> list[Span]:
    """All spans of an endpoint, oldest first; of one model, if named.

    Raises:
        NotFound: the endpoint never served such a model.
    """
    found = [span for span in spans(revisions_since(store, endpoint)) if model in ("", span.model)]
    if model and not found:
        raise NotFound(f"endpoint {endpoint!r} never served a model {model!r}")
    return sorted(found, key=lambda span: (span.revision, span.model, -span.weight))


def spans(revisions: Iterable[Revision]) -> Iterator[Span]:
    """The same of any ledger; spans come as they end, open ones last."""
    live: dict[tuple[str, str, str], Span] = {}
    for revision in revisions:
        now = {
            (model, served.version, served.artifact.digest): served.weight
            for model, state in revision.models.items()
            for served in state.versions
            if served.weight > 0
        }
        for key in [key for key, span in live.items() if now.get(key) != span.weight]:
            yield live.pop(key).model_copy(update={"end": revision.created_at})
        for key, weight in now.items():
            if key not in live:
                live[key] = _open(key, weight, revision)
    yield from live.values()


def earlier_version(store: Store, endpoint: str, model: str, version: str) -> ServedVersion:
    """A version as it was when it last served all requests of its model.

    Raises:
        NotFound: it never did; names those that did.
    """
    found: dict[str, ServedVersion] = {}
    for revision in revisions_since(store, endpoint):
        state = revision.models.get(model)
        if state and len(state.versions) == 1:
            found[state.stable.version] = state.stable
    if version not in found:
        known = ", ".join(found) or "none"
        raise NotFound(
            f"version {version!r} of {model!r} never served all requests of {endpoint!r}; these did: {known}"
        )
    return found[version]


def _open(key: tuple[str, str, str], weight: float, revision: Revision) -> Span:
    model, version, digest = key
    decision = revision.decision if revision.decision and revision.decision.model == model else None
    return Span(
        model=model,
        version=version,
        digest=digest,
        weight=weight,
        begin=revision.created_at,
        end=None,
        revision=revision.number,
        author=revision.author,
        reason=revision.reason,
        decision=decision,
    )
