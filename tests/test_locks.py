"""Locks on files, between two open files as between two processes."""

import errno
import fcntl

import pytest

from cspine_jax import locks


def test_many_may_share_a_lock_and_one_may_hold_it_alone(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        assert locks.acquire(first, shared=True) and locks.acquire(second, shared=True)
        assert not locks.acquire(first)
        locks.release(second)
        assert locks.acquire(first) and not locks.acquire(second, shared=True)
    with path.open("w") as third:
        assert locks.acquire(third, wait=True)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_keeps_nobody_from_working(tmp_path, monkeypatch, number):
    def flock(file, operation):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (tmp_path / "lock").open("w") as file:
        assert locks.acquire(file) and locks.acquire(file, shared=True)
        locks.release(file)


def test_other_errors_are_told(tmp_path):
    with (tmp_path / "lock").open("w") as file:
        pass
    with pytest.raises(ValueError, match="closed"):
        locks.acquire(file)
