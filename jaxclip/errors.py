"""The one exception for mistakes that a user can mend."""

import errno

_FILE_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR}
_USERS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


class InputError(ValueError):
    """Bad input: the message names the file, key or option and says what to do.

    The command line prints the message alone and exits with code 2; in Python it is a ``ValueError``.
    """


def to_mend(error: Exception) -> str | None:
    """What a user has to mend, in words: of an InputError, a file in the way, a full disk; None for other errors."""
    if isinstance(error, InputError):
        return str(error)
    if not isinstance(error, OSError) or error.errno not in _USERS | _FILE_IN_THE_WAY:
        return None
    if error.errno in _FILE_IN_THE_WAY:
        return f"{error.filename}: a folder is to be here, and a file is in the way: name another"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


def reason(error: BaseException) -> str:
    """An exception in one line: the first line of its message, or its type's name where the message is empty."""
    return next((line.strip() for line in str(error).strip().splitlines()), "") or type(error).__name__
