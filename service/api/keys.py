"""API keys: where they come from, and whether a given text is one of them.

Only hashes are kept: a key is in no log, no error and no representation of an object. Knows nothing of HTTP.
"""

import hashlib
import hmac
import logging
import os
import re
from pathlib import Path

from service.settings import Settings, SettingsError

_KEY = re.compile(r"[!-~]+")
"""Characters that are safe in a header: printable ASCII without spaces."""

logger = logging.getLogger(__name__)


class ApiKeys:
    """The keys of HEADLIGHT_API_KEYS and of the key file, which is read again when it changes.

    A mounted Secret can so be rotated without loading the model again. If a changed file is faulty, the fault is logged
    and the previous keys stay valid.
    """

    def __init__(self, settings: Settings) -> None:
        """Read the keys. Raises SettingsError if a key is malformed, or a file has none."""
        self._fixed = _from_text(settings.api_keys.get_secret_value()) if settings.api_keys else []
        self._file = settings.api_keys_file
        self._version = self._look()
        self._read = _from_file(self._file) if self._file else []

    @property
    def required(self) -> bool:
        """Whether there are any keys; without, everybody is served."""
        return bool(self._fixed or self._read)

    @property
    def several(self) -> bool:
        """Whether there are at least two different keys."""
        return len(set(self._fixed + self._read)) > 1

    def accept(self, key: bytes) -> bool:
        """Whether this is one of the keys. The time it takes does not depend on which key matches, or how nearly."""
        self._refresh()
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._fixed + self._read]
        return any(matches)

    def _refresh(self) -> None:
        version = self._look()
        if self._file is None or version == self._version:
            return
        self._version = version
        try:
            self._read = _from_file(self._file)
        except SettingsError as error:
            logger.error("%s; the keys from before stay valid", error)
        else:
            logger.info("%s has changed: %d API keys", self._file, len(self._read))

    def _look(self) -> tuple[int, int, int] | None:
        """Attributes that tell two versions of the key file apart; None if there is no file."""
        try:
            status = os.stat(self._file) if self._file else None
        except OSError:
            return None
        return status and (status.st_mtime_ns, status.st_ino, status.st_size)


def _from_text(text: str) -> list[bytes]:
    parts = [part.strip() for part in text.split(",")]
    return [_checked(part, f"HEADLIGHT_API_KEYS: key {number}") for number, part in enumerate(parts, 1)]


def _from_file(path: Path) -> list[bytes]:
    try:
        # Bytes that are not UTF-8 become U+FFFD, which no key may have, so the line is refused below.
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError as error:
        raise SettingsError(f"api_keys_file: {path}: {error.strerror or error}") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    keys = [
        _checked(line, f"api_keys_file: {path}: line {number}")
        for number, line in numbered
        if line and not line.startswith("#")
    ]
    if not keys:
        raise SettingsError(f"api_keys_file: {path}: there is no key in it")
    return keys


def _checked(key: str, place: str) -> bytes:
    """The key's hash. Raises SettingsError, which names a faulty key by its place alone."""
    if not _KEY.fullmatch(key):
        raise SettingsError(f"{place}: {'a key must be ASCII without spaces' if key else 'the key is empty'}")
    return _digest(key.encode())


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
