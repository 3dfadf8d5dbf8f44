"""The whole exception tree. Every failure is either worth another try or final.

    ModelyardError
    ├── TransientError            the same call may succeed later: tasks retry it, with backoff
    │   ├── StoreUnavailable      the object store did not answer, or answered 5xx / 429
    │   ├── ObjectChanged         an object was replaced while it was read
    │   ├── TrackerUnavailable    the same for MLflow
    │   ├── EndpointUnavailable   the same for the serving endpoint
    │   ├── HubUnavailable        the same for a hub of networks, where one is named
    │   ├── ClusterUnavailable    the same for a Ray cluster; or all of it is taken
    │   ├── RankLost              a training process died or hung without saying why
    │   ├── CheckpointFailed      a checkpoint could not be saved within its time
    │   ├── Preempted             the machine asked a rank to end; its state is saved
    │   ├── MachineBusy           others build or measure on this machine for too long
    │   ├── HelperLost            the process that carries out compression's jobs went away
    │   ├── WorkerLost            processes that prepare partitions kept going away, or took too long
    │   └── LostRace              another writer moved what this one was about to move
    └── PermanentError            trying again gives the same answer: said at once
        ├── ConfigError           a setting, preset key or flow parameter; names the field
        ├── PortTaken             names the port, its setting and, where known, the process
        ├── StackFailed           a part of the embedded stack did not become ready
        ├── MissingExtra          an optional dependency that the chosen option needs
        ├── HostUnfit             this machine lacks what a form of a model was made for
        ├── MachineFull           the disk of this machine has no room for what must lie there
        ├── StoreRefused          wrong credentials, missing bucket, no create-only put
        ├── NotFound              an object, artifact or version that is not there
        ├── DigestMismatch        bytes that are not what their manifest says; names the file
        ├── SignatureRefused      unsigned, altered, or signed by nobody who is trusted
        ├── DataError             the data set itself: schema, types, emptiness, too many bad rows
        ├── TrainingFailed        a rank raised; carries the rank's own error
        │   ├── NonFiniteLoss
        │   ├── TargetNotReached
        │   └── TrainingTakenOver a newer group of ranks works on the same training
        ├── TrialPruned           a trial of a tuning that falls behind the others; ended, not wrong
        ├── TuningFailed          no trial of a tuning was finished; says why of each
        ├── ConversionFailed      a converted model that does not compute what its parent does
        ├── Refused               a gate said no; carries its table
        │   └── RolledBack        the gates of a rollout said no; the old version serves
        ├── RolloutBusy           another rollout of the same model is not decided yet
        ├── RolloutWaits          a rollout holds for want of requests; the endpoint goes on with it
        │   └── ApprovalNeeded    it holds until a person agrees; carries the evidence
        └── RolloutFailed         the endpoint did not take the new version; the old one serves

Only the standard library is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence


class ModelyardError(Exception):
    """Base of every error that Modelyard raises on purpose."""


class TransientError(ModelyardError):
    """The same call may succeed later."""


class PermanentError(ModelyardError):
    """Trying again gives the same answer."""


class StoreUnavailable(TransientError):
    """The object store did not answer in time, or asked to slow down."""


class ObjectChanged(TransientError):
    """An object was replaced while it was read; what stands there now can be read from its beginning."""


class TrackerUnavailable(TransientError):
    """The MLflow server did not answer in time."""


class EndpointUnavailable(TransientError):
    """The serving endpoint did not answer in time."""


class HubUnavailable(TransientError):
    """The hub that networks may be downloaded from did not answer."""


class ClusterUnavailable(TransientError):
    """A Ray cluster does not answer, or had no room in time."""


class RankLost(TransientError):
    """A training process ended or went silent without naming a reason."""


class CheckpointFailed(TransientError):
    """A checkpoint could not be made durable, or not within its bound; the one before it stands."""


class Preempted(TransientError):
    """A rank was asked to end (SIGTERM), saved the state of its group, and did."""


class MachineBusy(TransientError):
    """Others have been building or measuring on this machine for too long."""


class HelperLost(TransientError):
    """The process that carries out compression's jobs went away; the next job starts another one."""


class WorkerLost(TransientError):
    """A process that prepares a partition of a data set went away, or took too long, several times."""


class LostRace(TransientError):
    """Another writer took the place this one was about to take."""


class ConfigError(PermanentError):
    """A wrong setting, preset key or parameter.

    Args:
        field: dotted name of the field, as the user would write it (``train.max_epochs``).
        problem: what is wrong, and what to write instead.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}")


class PortTaken(PermanentError):
    """A port of the embedded stack belongs to another process."""

    def __init__(self, port: int, setting: str, owner: str | None) -> None:
        self.port = port
        self.setting = setting
        self.owner = owner
        held_by = f"held by {owner}" if owner else "held by another process"
        super().__init__(f"port {port} is {held_by}; stop it or choose another with {setting}=<port>")


class StackFailed(PermanentError):
    """A part of the embedded stack did not become ready; names its log."""


class MissingExtra(PermanentError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs the package {package!r}: pip install 'modelyard[{extra}]'")


class HostUnfit(PermanentError):
    """This machine lacks an instruction set that a form of a model was made and judged with."""


class MachineFull(PermanentError):
    """The disk of this machine has no room for what must lie there."""


class StoreRefused(PermanentError):
    """The object store answered, and the answer is no."""


class NotFound(PermanentError):
    """Something that was asked for by name is not there."""


class DigestMismatch(PermanentError):
    """Bytes that are not what their manifest promises."""

    def __init__(self, uri: str, expected: str, actual: str) -> None:
        self.uri = uri
        self.expected = expected
        self.actual = actual
        super().__init__(
            f"{uri}: sha256 is {actual}, its manifest says {expected}; the file is damaged or was replaced"
        )


class SignatureRefused(PermanentError):
    """An artifact that nobody who is trusted has signed, or not as it is."""


class DataError(PermanentError):
    """The data set cannot be used as it is."""


class TrainingFailed(PermanentError):
    """A rank raised an error that a restart would meet again."""


class NonFiniteLoss(TrainingFailed):
    """The loss became NaN or infinite, or rose above the bound that counts as diverged."""


class TargetNotReached(TrainingFailed):
    """The epoch limit came before the target metric did."""


class TrainingTakenOver(TrainingFailed):
    """A newer group of ranks works on the same training, so this one must not publish."""


class TrialPruned(PermanentError):
    """A trial was ended because it falls behind the others, or because the time of its tuning is over."""


class TuningFailed(PermanentError):
    """No trial of a tuning was finished."""


class ConversionFailed(PermanentError):
    """A converted model does not compute what its parent computes."""


class Refused(PermanentError):
    """A gate said no.

    Args:
        subject: what was judged.
        reasons: one sentence for each check that failed.
        table: every check, passed or not, as rows ready to be shown.
    """

    def __init__(self, subject: str, reasons: Sequence[str], table: Sequence[dict[str, object]] = ()) -> None:
        self.subject = subject
        self.reasons = list(reasons)
        self.table = list(table)
        super().__init__(f"{subject} was refused: " + "; ".join(self.reasons))


class RolledBack(Refused):
    """The gates of a rollout said no: the canary gets no requests, what served before serves on."""


class RolloutBusy(PermanentError):
    """Another rollout of the same model is not decided yet."""


class RolloutWaits(PermanentError):
    """A rollout holds for want of requests, longer than one waits for it; the endpoint goes on with it."""


class ApprovalNeeded(RolloutWaits):
    """A rollout has all it needs but a person's approval.

    Args:
        subject: what is to be promoted.
        table: every gate, as rows ready to be shown.
    """

    def __init__(self, subject: str, table: Sequence[dict[str, object]]) -> None:
        self.subject = subject
        self.table = list(table)
        super().__init__(f"{subject} may be promoted as soon as a person agrees")


class RolloutFailed(PermanentError):
    """The endpoint did not take the new version; what served before serves on."""


def as_told(kind: str, message: str) -> ModelyardError | None:
    """An error that another process told of, by the name of its class; None where it is none of these.

    Args:
        message: its sentence.
    """
    found = globals().get(kind)
    if found is ConfigError:
        field, _, problem = message.partition(": ")
        return ConfigError(field, problem)
    if not (isinstance(found, type) and issubclass(found, TransientError | PermanentError)):
        return None
    is_simple = found.__init__ in (TransientError.__init__, PermanentError.__init__)
    return found(message) if is_simple else PermanentError(message)
