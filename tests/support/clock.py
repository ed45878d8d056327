"""A clock that the test moves."""


class Clock:
    """Seconds; stands still until it is moved."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
