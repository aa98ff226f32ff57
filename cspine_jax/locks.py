"""Locks among processes, on open files; a lock dies with the process that holds it."""

import errno
from typing import IO

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What network folders answer that know no locks (NFS without its lock service, Lustre mounted without flock)."""


def acquire(file: int | IO, *, shared: bool = False, wait: bool = False) -> bool:
    """Takes the lock of an open file, or changes the one that is held.

    Args:
        file: descriptor, or an open file.
        shared: many may hold it so, while none holds it alone.
        wait: until it is free; else only a try.

    Returns:
        False if another process is in the way. True, too, on a file system that knows no locks: nobody is kept from
        working there.

    Raises:
        OSError: the file cannot be locked for another reason.
    """
    import fcntl

    return _flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def release(file: int | IO) -> None:
    """Gives the lock back while the file stays open; closing it does so, too."""
    import fcntl

    _flock(file, fcntl.LOCK_UN)


def _flock(file: int | IO, operation: int) -> bool:
    import fcntl

    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
