"""What can go wrong in the command, and the exit codes that say so.

CliError                  one readable message, exit code 1
├─ Faults                 several faults of the input, each with its place (`file:line: what`)
├─ ApiError               the control plane answered with an error
├─ Unreachable            the control plane did not answer at all
├─ OutcomeUnknown         it may have made the change, or may not: exit code 4
├─ Interrupted            Ctrl-C when there is more to say than that: exit code 130
└─ NotLive                written, but not running on every worker: exit code 3

Unwritten                 not for stderr alone to tell: stdout takes nothing more
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cli.texts import unbroken

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_CHANGES = 2
EXIT_NOT_RUNNING = 3
EXIT_UNKNOWN = 4
EXIT_UNREPORTED = 5
EXIT_INTERRUPTED = 130
EXIT_NOBODY_READS = 141
"""As of a process that SIGPIPE ended."""

EXIT_CODES = """\b
Exit codes:
  0    it worked (for diff: whatever was found, unless --non-zero-exit-code)
  1    it failed: wrong input, no answer, a refusal; the message says which
  2    changes were found, and --non-zero-exit-code asked to be told so
  3    not running everywhere: a node refused or stayed silent (--wait), a part of the stack is not up (status)
  4    nobody knows whether the change was made: the answer was lost; see recipe diff, recipe history
  5    it was done, but its report could not be written (a full disk); the message says what was done
  130  interrupted; processes that this run had started were stopped again, but a change that was under way may
       have been made: the message says so
  141  whoever read the output went away (| head); 0 after a change that was made: it stands
"""

MOST_FAULTS_SHOWN = 50


class CliError(Exception):
    """A message for the person at the terminal; never a traceback."""

    exit_code = EXIT_ERROR

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def lines(self) -> list[str]:
        """The message as separate errors, for JSON output."""
        return [self.message]


class Faults(CliError):
    """Everything that is wrong with an input, not only the first thing."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = [unbroken(fault) for fault in faults]
        shown = self.faults[:MOST_FAULTS_SHOWN]
        if len(self.faults) > len(shown):
            shown.append(f"… and {len(self.faults) - len(shown)} more")
        super().__init__("\n".join(shown))

    def lines(self) -> list[str]:
        return self.faults


class ApiError(CliError):
    """The control plane refused. `errors` holds its located faults (`path`, `entity`, `field`, `message`), if any."""

    def __init__(self, message: str, status: int, errors: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(unbroken(message))
        self.status = status
        self.errors = list(errors)


class Unwritten(Exception):
    """Standard output took no more, because of `error`."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.nobody_reads = isinstance(error, BrokenPipeError)


class Unreachable(CliError):
    """Nobody answered at the control plane's address."""


class OutcomeUnknown(CliError):
    """A request that changes something was sent, and no answer came."""

    exit_code = EXIT_UNKNOWN


class Interrupted(CliError):
    """Ctrl-C while a change was under way, or was made but not yet live."""

    exit_code = EXIT_INTERRUPTED


class NotLive(CliError):
    """The change is written, but some worker does not run it."""

    exit_code = EXIT_NOT_RUNNING
