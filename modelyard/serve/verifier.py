"""Checks signatures in a process of its own: `python -m modelyard.serve.verifier`.

What it needs for that (10 MB) is gone again when nothing is being loaded, and what parses a stranger's bytes is not
the process that holds the connections. The router starts it; a line of JSON in, a line of JSON out.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

from modelyard.errors import ConfigError, EndpointUnavailable, ModelyardError, SignatureRefused
from modelyard.serve.starting import start_verifier

IDLE_SECONDS = 10.0
ANSWER_SECONDS = 30.0


class Verifier:
    """The router's side. May be called from several threads.

    Args:
        trusted: the folder of public keys; read at each check, so that keys come and go without a restart.
        first: a process that was started beforehand.
    """

    def __init__(self, trusted: Path, first: subprocess.Popen[bytes] | None = None) -> None:
        self._trusted = trusted
        self._process = first
        self._lock = threading.Lock()
        self._is_closed = False

    def check(self, folder: Path) -> None:
        """Check the signatures of an artifact's local copy.

        Raises:
            SignatureRefused: it must not be loaded; says why.
            ConfigError: a trusted key cannot be read.
            EndpointUnavailable: the process died or hung, or was closed for good.
        """
        question = json.dumps({"folder": str(folder), "trusted": str(self._trusted)}).encode() + b"\n"
        with self._lock:
            answer = self._ask(question) or self._ask(question)  # the first may have left, as nobody asked for long
        if not answer:
            raise EndpointUnavailable(f"signatures cannot be checked: no answer within {ANSWER_SECONDS:g} s")
        said = json.loads(answer)
        if said["refused"]:
            raise SignatureRefused(said["refused"])
        if said["error"]:
            raise ConfigError("MODELYARD_TRUSTED_KEYS", said["error"])

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._end()

    def _ask(self, question: bytes) -> bytes:
        """One line, or nothing where the process is gone."""
        if self._is_closed:  # a thread of an endpoint that ends may come late
            return b""
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = start_verifier()
        asking, answering = self._process.stdin, self._process.stdout
        assert asking
        assert answering
        try:
            asking.write(question)
            ready, _, _ = select.select([answering], [], [], ANSWER_SECONDS)
            answer = answering.readline() if ready else b""
        except BrokenPipeError:
            answer = b""
        if not answer:
            self._end()
        return answer

    def _end(self) -> None:
        process, self._process = self._process, None
        if process:
            process.kill()
            process.communicate()


def main() -> None:
    """Answer until nobody asks any more."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it leaves when the router does
    import cryptography.hazmat.primitives.asymmetric.ec
    import cryptography.hazmat.primitives.serialization  # noqa: F401 (now, while the router still does its own imports)

    questions = os.fdopen(0, "rb", buffering=0, closefd=False)
    while select.select([questions], [], [], IDLE_SECONDS)[0] and (question := questions.readline()):
        said = json.loads(question)
        sys.stdout.write(json.dumps(_answer(Path(said["folder"]), Path(said["trusted"]))) + "\n")
        sys.stdout.flush()


def _answer(folder: Path, trusted: Path) -> dict[str, str | None]:
    from modelyard.signing.verify import verify_folder

    try:
        verify_folder(folder, trusted)
    except SignatureRefused as refused:
        return {"refused": str(refused), "error": None}
    except (ModelyardError, OSError) as failure:
        return {"refused": None, "error": str(failure)}
    return {"refused": None, "error": None}


if __name__ == "__main__":
    main()
