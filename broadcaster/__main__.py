"""``python -m broadcaster``: serve until SIGTERM or Ctrl-C. What cannot be is said in one sentence, with exit code 1."""

import sys

from app import telemetry
from app.errors import PermanentError
from app.events.policies import Policies
from app.events.policy_file import read_hooks
from app.settings import load_settings, variables
from broadcaster.server import Broadcaster, Server, listen


def main() -> int:
    """Run the broadcaster; returns the exit code."""
    telemetry.configure("broadcaster")
    try:
        settings = load_settings()
        policies = Policies.load(settings.policies, settings)
        broadcaster = Broadcaster(settings, policies, read_hooks(settings.policies), variables())
        server = Server(broadcaster, listen(settings), settings)
    except PermanentError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    server.serve_until_signal()
    return 0


if __name__ == "__main__":
    sys.exit(main())
