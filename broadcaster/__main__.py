"""``python -m broadcaster``: serve until SIGTERM or Ctrl-C. What cannot be is said in one sentence, with exit code 1; arguments are
refused with 2.
"""

import resource
import sys

from app import telemetry
from app.arguments import take_none
from app.errors import PermanentError
from app.events.policies import Policies
from app.events.policy_file import read_hooks
from app.settings import load_settings, variables
from broadcaster.server import Broadcaster, Server, listen

MAX_FILES = 65_536
_HELP = (
    "Takes events in over HTTP and Socket.IO until Ctrl-C or SIGTERM. It is set by DEDUP_ variables, in the environment or in .env, such as "
    "DEDUP_HOST, DEDUP_PORT, DEDUP_TOKEN and DEDUP_POLICIES; docs/settings.md has all of them."
)


def allow_connections() -> None:
    """Let this process open as many files, and so connections, as the system lets it: many systems begin with 1,024."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if most == resource.RLIM_INFINITY else min(MAX_FILES, most)
    if now not in (resource.RLIM_INFINITY, most) and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def main() -> int:
    """Run the broadcaster; returns the exit code."""
    take_none("python -m broadcaster", _HELP, sys.argv[1:])
    telemetry.configure("broadcaster")
    allow_connections()
    try:
        settings = load_settings()
        policies = Policies.load(settings.policies, settings)
        broadcaster = Broadcaster(settings, policies, read_hooks(settings.policies), variables())
        server = Server(broadcaster, listen(settings), settings)
    except PermanentError as error:
        sys.stderr.write(f"dedup: {error}\n")
        return 1
    server.serve_until_signal()
    return 0


if __name__ == "__main__":
    sys.exit(main())
