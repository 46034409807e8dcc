"""The one exception for mistakes that a user can mend."""


class InputError(ValueError):
    """Bad input: the message names the file, key or option and says what to do.

    The command line prints the message alone and exits with code 2; in Python it is a ``ValueError``.
    """


def reason(error: BaseException) -> str:
    """An exception in one line: the first line of its message, or its type's name where the message is empty."""
    return next((line.strip() for line in str(error).strip().splitlines()), "") or type(error).__name__
