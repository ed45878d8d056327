"""Puts a process's wall clock off by ``TEST_CLOCK_OFFSET_S`` seconds; its monotonic clock stays true.

Python imports this file at start when its folder is on ``PYTHONPATH``. libfaketime will not do: it shifts the absolute
monotonic deadlines of ``time.sleep`` as well.
"""

import datetime as dt
import os
import time
from typing import Any

_OFFSET_S = int(os.environ["TEST_CLOCK_OFFSET_S"])
_true_time, _true_time_ns, _true_datetime = time.time, time.time_ns, dt.datetime


class _Meta(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _true_datetime)


class _Datetime(_true_datetime, metaclass=_Meta):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Any:
        return _true_datetime.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        return _true_datetime.fromtimestamp(time.time(), dt.UTC).replace(tzinfo=None)


time.time = lambda: _true_time() + _OFFSET_S
time.time_ns = lambda: _true_time_ns() + _OFFSET_S * 1_000_000_000
dt.datetime = _Datetime  # type: ignore[misc]
