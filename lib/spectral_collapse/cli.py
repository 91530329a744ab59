"""Commands of this package: what they say on success, and one sentence where they cannot be done."""

from collections.abc import Callable


def outcome(command: Callable[[], str]) -> int:
    """Prints what the command returns, or the message of its ValueError; the exit status, 0 or 1."""
    try:
        print(command())
    except ValueError as error:
        print(error)
        return 1
    return 0
