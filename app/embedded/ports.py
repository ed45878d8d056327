"""Free ports on the loopback address, remembered per server.

A replica set's configuration names its members' ports, so a server comes back on its old port where it can. A port that is
free now may be taken a moment later; the server that then fails to bind it says so.
"""

import random
import socket
from pathlib import Path

from app.errors import ServerStartError

HOST = "127.0.0.1"

_FIRST, _LAST = 20_000, 32_000
"""Below the range that systems take client ports from (32768 on Linux, 49152 on macOS). Inside it, a client that keeps calling
a stopped server's port can be given that very port for its own end, and so occupy it."""


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now; connections of a former server that are still closing do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that is free now."""
    for port in random.sample(range(_FIRST, _LAST), 100):
        if is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def choose_port(memory: Path, given: int | None = None) -> int:
    """The port for a server: the one given, else the one it had before, else a free one. It is written down for the next time.

    Args:
        memory: file that holds the port.
        given: the port that the user insists on.

    Raises:
        ServerStartError: the given port is taken.
    """
    if given is not None and not is_free(given):
        raise ServerStartError(f"port {given} is taken by another program: stop that, or choose another port")
    try:
        before = int(memory.read_text())
    except (FileNotFoundError, ValueError):
        before = None
    port = given or (before if before and is_free(before) else free_port())
    if port != before:
        memory.write_text(f"{port}\n")
    return port
