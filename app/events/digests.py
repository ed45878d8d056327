"""The digest of an event's content, made once at the door and stored.

Guaranteed: equal content gives equal digests, whatever the order of fields, the process or the release of this project;
different content gives different digests but for a chance of 2**-64 among four thousand million events. The first character
is the version of the method: another method gets another one, so that digests of two methods are never taken for equal.

Only ``type`` and ``data`` are digested, or what the type's policy says instead of ``data``. Time, trace and delivery
attributes differ between honest redeliveries and must not count.
"""

from base64 import b64encode, urlsafe_b64encode
from hashlib import blake2b
from typing import Any

from app.events.values import canonical

DIGEST_VERSION = "1"
DIGEST_BYTES = 16


def digest_of(type: str, content: Any) -> str:
    """Digest of an event: ``1`` and 22 characters of ``A-Z a-z 0-9 - _``.

    Args:
        type: the event's type.
        content: its data, or what the type's policy takes instead: a JSON value without a fault (see ``app.events.values``),
            or bytes. Bytes never digest like a JSON value.
    """
    typed = [type, b64encode(content).decode(), "base64"] if isinstance(content, bytes) else [type, content]
    hashed = blake2b(canonical(typed), digest_size=DIGEST_BYTES).digest()
    return DIGEST_VERSION + urlsafe_b64encode(hashed)[:-2].decode()
