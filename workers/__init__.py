"""What runs in a listener: the task, its steps, handlers, renewal. For users: ``from workers import handler``."""

from workers.handlers import Context, PermanentFailure, RetryLater, handler

__all__ = ["Context", "PermanentFailure", "RetryLater", "handler"]
