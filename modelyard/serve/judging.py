"""Decides rollouts from what the router counts, and writes each decision as the next revision.

The endpoint does this alone, from the policy in the revision: whoever began the rollout may be dead. Going forward, the
revision is written first and acted on when it is read back; going back, the canary's weight is taken away in memory
first, in the turn of the event loop in which the evidence was enough, and the revision follows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from modelyard import transitions
from modelyard.errors import ModelyardError
from modelyard.gates import StepCounts
from modelyard.revisions import Decision, Revision, ServedVersion, propose_revision, replica_statuses
from modelyard.serve.replay import Replay
from modelyard.serve.router import Router
from modelyard.serve.running import RunningVersion
from modelyard.serve.threads import in_thread
from modelyard.serve.trial import Trial
from modelyard.storage import Store

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.05
OTHERS_SECONDS = 1.0  # between two looks at what other replicas have counted
RETRY_SECONDS = 0.5  # before a revision that the store did not take is written again

Change = Callable[[Revision], transitions.Models | None]


class Judge:
    """All rollouts of one endpoint replica."""

    def __init__(
        self, endpoint: str, replica: str, *, store: Store, router: Router, on_written: Callable[[], None]
    ) -> None:
        self._endpoint = endpoint
        self._replica = replica
        self._store = store
        self._router = router
        self._on_written = on_written
        self._condemned: set[str] = set()
        self._restarts: dict[str, int] = {}  # of each canary before its rollout, by the rollout's id
        self._replays: dict[str, Replay] = {}
        self._replayed_seconds: dict[str, float] = {}
        self._writes: dict[str, asyncio.Task[None]] = {}
        self._asking_others: asyncio.Task[None] | None = None
        self._owed: dict[str, str] = {}  # ways back that the store does not take, by the rollout's id

    # -- what the reconciler tells ---------------------------------------------------------------------

    def is_condemned(self, rollout_id: str) -> bool:
        """Whether a rollout's canary must get no requests, whatever the newest revision still says."""
        return rollout_id in self._condemned

    def adopt(self, revision: Revision, find: Callable[[str, ServedVersion], RunningVersion]) -> None:
        """A revision is in force: begin, go on with or forget the rollouts that it names. No await in here."""
        trials: dict[str, Trial] = {}
        for model, state in revision.models.items():
            if state.rollout is None or self.is_condemned(state.rollout.id):
                continue
            known = self._router.trials.get(model)
            if known and (known.rollout.id, known.rollout.step) == (state.rollout.id, state.rollout.step):
                known.rollout = state.rollout
                trials[model] = known
                continue
            stable, canary = (find(model, served) for served in state.versions)
            before = self._restarts.setdefault(state.rollout.id, canary.num_restarts)
            trials[model] = Trial(
                model, state.rollout, stable, canary, restarts_before=before, on_bad=self._look_at_once
            )
        for model in set(self._replays) - set(trials):
            self._stop_replay(model)
        self._router.trials = trials

    def give_up(self, revision: Revision, reason: str) -> None:
        """A revision cannot be served: undo the rollouts that it was to begin."""
        serving = {trial.rollout.id for trial in self._router.trials.values()}
        for model, state in revision.models.items():
            if state.rollout and state.rollout.id not in serving and not self.is_condemned(state.rollout.id):
                self._condemned.add(state.rollout.id)
                canary, rollout_id = state.versions[1], state.rollout.id
                decision = Decision(
                    model=model, action="give_up", version=canary.version, rollout_id=rollout_id, reasons=[reason]
                )
                self._write(rollout_id, partial(transitions.undo, model=model, rollout_id=rollout_id), decision)

    @property
    def owed(self) -> str | None:
        """What has gone back here and is not in the ledger yet, with the reason; None: nothing."""
        return "; ".join(self._owed.values()) or None

    def counts(self) -> dict[str, StepCounts]:
        """What this replica has counted in the present steps, by rollout."""
        return {trial.rollout.id: trial.own_counts() for trial in self._router.trials.values()}

    # -- the loop -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at every rollout, again and again, until cancelled."""
        try:
            while True:
                await asyncio.sleep(TICK_SECONDS)
                if self._router.trials and (self._asking_others is None or self._asking_others.done()):
                    # Beside the loop: a store that answers late must hold up no decision.
                    self._asking_others = asyncio.create_task(self._ask_others())
                for trial in list(self._router.trials.values()):
                    self._consider(trial)
        finally:
            for task in [*self._writes.values(), *([self._asking_others] if self._asking_others else [])]:
                task.cancel()

    def _look_at_once(self, trial: Trial) -> None:
        """The canary did something bad: that may have been enough."""
        self._refuse_if_bad(trial)

    def _consider(self, trial: Trial) -> None:
        if self._refuse_if_bad(trial) or trial.rollout.id in self._writes:
            return
        waits = trial.waits_for()
        if not waits:
            if reasons := trial.too_slow_reasons():
                self._refuse(trial, reasons)
            else:
                self._go_on(trial, [])
            return
        policy = trial.rollout.policy
        if trial.seconds > policy.max_seconds and policy.when_thin != "hold":
            reasons = [f"after {policy.max_seconds:g} s {waits}, and the policy says {policy.when_thin}"]
            if policy.when_thin == "roll_back" or not trial.keeps_bound:
                self._refuse(trial, reasons)
                return
            if slow := trial.too_slow_reasons():
                self._refuse(trial, slow)
                return
            if trial.canary.is_available and not trial.awaits_approval:
                self._go_on(trial, reasons)
                return
        self._replay_if_silent(trial)

    def _go_on(self, trial: Trial, reasons: Sequence[str]) -> None:
        """The next weight, or promotion. It is acted on when the revision is read back."""
        self._stop_replay(trial.model)
        rollout, counts, said = trial.rollout, trial.counts(), trial.judgement()
        change: Change
        if trial.is_last_step:
            change = partial(transitions.promote, model=trial.model, rollout_id=rollout.id)
        else:
            change = partial(
                transitions.advance,
                model=trial.model,
                rollout_id=rollout.id,
                step=rollout.step + 1,
                counts=counts,
                slow_seconds=trial.slow_seconds,
            )
        decision = Decision(
            model=trial.model,
            action="promote" if trial.is_last_step else "advance",
            version=trial.canary.served.version,
            rollout_id=rollout.id,
            reasons=[*reasons, *trial.notes()],
            checks=said.checks,
            counts=counts,
        )
        self._write(rollout.id, change, decision)

    def _refuse_if_bad(self, trial: Trial) -> bool:
        if trial.is_over:
            return True
        reasons = [*trial.hard_reasons(), *trial.judgement().reasons]
        if reasons:
            self._refuse(trial, reasons)
        return bool(reasons)

    def _refuse(self, trial: Trial, reasons: Sequence[str]) -> None:
        """Zero the canary in memory, now; then write that it is so."""
        rollout_id, model = trial.rollout.id, trial.model
        trial.is_over = True
        self._condemned.add(rollout_id)
        self._router.zero(model)
        self._router.trials = {name: one for name, one in self._router.trials.items() if name != model}
        self._stop_replay(model)
        version = trial.canary.served.version
        logger.error("%s version %s is rolled back: %s", model, version, "; ".join(reasons))
        if earlier := self._writes.pop(rollout_id, None):
            earlier.cancel()
        decision = Decision(
            model=model,
            action="roll_back",
            version=version,
            rollout_id=rollout_id,
            reasons=[*reasons, *trial.notes()],
            checks=trial.judgement().checks,
            counts=trial.counts(),
        )
        self._write(rollout_id, partial(transitions.undo, model=model, rollout_id=rollout_id), decision)

    # -- while nobody asks -----------------------------------------------------------------------------

    def _replay_if_silent(self, trial: Trial) -> None:
        settings, rollout_id = trial.rollout.policy.replay, trial.rollout.id
        replay = self._replays.get(trial.model)
        is_silent = time.monotonic() - trial.last_live >= settings.after_seconds
        used = self._replayed_seconds.get(rollout_id, 0.0) + (replay.seconds if replay else 0.0)
        num_replayed = sum(one.canary.replayed for one in trial.counts())
        may = settings.enabled and used < settings.max_seconds and num_replayed < settings.max_requests
        if replay and not (is_silent and may and replay.trial is trial):
            self._stop_replay(trial.model)
        elif not replay and is_silent and may:
            most = settings.max_requests - num_replayed
            self._replays[trial.model] = Replay(trial, self._router, most)

    def _stop_replay(self, model: str) -> None:
        replay = self._replays.pop(model, None)
        if replay:
            replay.stop()
            rollout_id = replay.trial.rollout.id
            self._replayed_seconds[rollout_id] = self._replayed_seconds.get(rollout_id, 0.0) + replay.seconds

    # -- other replicas, and the ledger ----------------------------------------------------------------

    async def _ask_others(self) -> None:
        """What other replicas have counted, so that a gate reads the sum; then a pause."""
        try:
            said = await in_thread(replica_statuses, self._store, self._endpoint)
        except (ModelyardError, ValueError) as failure:  # ValueError: a document that is none
            logger.warning("what other replicas counted cannot be read: %s", failure)
            said = []
        for trial in self._router.trials.values():
            others = [status.counts.get(trial.rollout.id) for status in said if status.replica != self._replica]
            if said:
                trial.others = [counts for counts in others if counts and counts.weight == trial.weight]
        await asyncio.sleep(OTHERS_SECONDS)

    def _write(self, rollout_id: str, change: Change, decision: Decision) -> None:
        task = asyncio.create_task(self._write_until_done(change, decision))
        self._writes[rollout_id] = task
        task.add_done_callback(lambda done: self._forget(rollout_id, done))

    def _forget(self, rollout_id: str, done: asyncio.Task[None]) -> None:
        if self._writes.get(rollout_id) is done:
            del self._writes[rollout_id]

    async def _write_until_done(self, change: Change, decision: Decision) -> None:
        """Going back is tried until it stands; going forward once, and judged again before the next try."""
        reason = f"{decision.action.replace('_', ' ')} {decision.model} version {decision.version}"
        author = f"endpoint {self._endpoint} ({self._replica})"
        while True:
            try:
                revision = await in_thread(
                    partial(
                        propose_revision,
                        self._store,
                        self._endpoint,
                        change,
                        reason=reason,
                        author=author,
                        decision=decision,
                    )
                )
            except (ModelyardError, ValueError) as failure:  # ValueError: the newest document is no revision
                logger.warning("%s cannot be written yet: %s", reason, failure)
                unwritten = f"the revision `{reason}` to be written: {failure}"
                if trial := self._router.trials.get(decision.model):
                    trial.unwritten = unwritten
                if decision.rollout_id in self._condemned:
                    self._owed[decision.rollout_id] = unwritten
                await asyncio.sleep(RETRY_SECONDS)
                if decision.action in ("advance", "promote"):
                    return
                continue
            logger.info("revision %d: %s", revision.number, reason)
            self._owed.pop(decision.rollout_id or "", None)
            self._on_written()
            return
