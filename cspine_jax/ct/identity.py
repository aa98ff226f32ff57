"""UIDs in place of UIDs: a keyed hash, so that what is written cannot be traced to the archive it came from."""

import dataclasses
import hashlib
import hmac
import re
from collections.abc import Iterable

_UID = re.compile(r"(?<![0-9])(?<![0-9]\.)(?:2\.25\.[0-9]{8,}|[0-2](?:\.[0-9]+){3,})(?![0-9])")
_STANDARD = "1.2.840.10008."
"""Root of the UIDs of the DICOM standard itself (transfer syntaxes, classes): they name no patient."""

OWN = "2.25."


@dataclasses.dataclass(frozen=True)
class Identity:
    """Replaces UIDs by HMAC-SHA256 under a salt, written as `2.25.<128-bit number>` (DICOM PS3.5, annex B.2).

    The same UID and salt always give the same result, in any run and on any machine, so that records, predictions and
    tables hashed with one salt still match. Whoever knows the salt, or that there is none, can test a UID for being
    the one that was hashed: keep it secret.

    Attributes:
        salt: the key; "" for none.
    """

    salt: str = dataclasses.field(default="", repr=False)

    def uid(self, uid: str) -> str:
        """The UID that stands for `uid`; "" stays "", and what is hashed already stays as it is."""
        if not uid or self.is_own(uid):
            return uid
        digest = hmac.new(self.salt.encode(), uid.encode(), hashlib.sha256).digest()
        return f"{OWN}{int.from_bytes(digest[:10] + self._mark(digest[:10]), 'big')}"

    def text(self, text: str, known: Iterable[str] = ()) -> str:
        """A message with every UID in it replaced.

        Args:
            text: any line, such as a warning or a path.
            known: UIDs that may be in it and do not look like such (an anonymiser's letters).
        """
        for uid in sorted({each for each in known if each}, key=len, reverse=True):
            text = re.sub(rf"(?<![A-Za-z0-9-])(?<![0-9]\.){re.escape(uid)}(?![\w-])", self.uid(uid), text)
        return _UID.sub(lambda found: self._standard_or_hashed(found[0]), text)

    @property
    def fingerprint(self) -> str:
        """Tells one salt from another without giving it away, for the metadata of records."""
        return hmac.new(self.salt.encode(), b"cspine salt", hashlib.sha256).hexdigest()[:16]

    def _standard_or_hashed(self, uid: str) -> str:
        return uid if uid.startswith(_STANDARD) else self.uid(uid)

    def _mark(self, start: bytes) -> bytes:
        """Six bytes by which a hashed UID is known again, so that nothing is hashed twice."""
        return hmac.new(self.salt.encode(), b"mark" + start, hashlib.sha256).digest()[:6]

    def is_own(self, uid: str) -> bool:
        """Whether a UID is one that this identity has written."""
        number = uid.removeprefix(OWN)
        if number == uid or not number.isascii() or not number.isdigit() or int(number) >> 128:
            return False
        both = int(number).to_bytes(16, "big")
        return both[10:] == self._mark(both[:10])


def from_flag(value: str | None) -> Identity | None:
    """What `--hash_uids[=SALT]` asks for: None where it was not given."""
    return None if value is None else Identity(value)
