"""Errors a user can act on. The command line prints them as one line and exits non-zero; anything else is a bug."""


class CspineError(Exception):
    """Base of every error caused by input: the message names the file, the value and the fix on one line."""


def in_one_line(error: OSError) -> str:
    """Which file, where the error knows, and what is wrong with it."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


class ConfigError(CspineError):
    """A configuration field is unknown, of the wrong type or out of range."""


class StudyError(CspineError):
    """A CT study or mask cannot be read, or not read right."""


class DataError(CspineError):
    """A data set folder, label table, record build or predictions table is missing or inconsistent."""
