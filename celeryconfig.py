"""Celery's settings for listeners, bridge and Flower; the edge at which their processes read the project's settings.

Each line that differs from Celery's default says why.
"""

import sys

from app.errors import SettingsError
from app.naming import RECOVERY_QUEUE
from app.settings import load_settings

try:
    settings = load_settings()
except SettingsError as error:
    sys.exit(f"dedup: {error}")

broker_url = settings.broker_url
broker_connection_retry_on_startup = True
broker_connection_max_retries = None  # a broker that is away is waited for, however long
broker_transport_options = {
    "ack_emulation": settings.visibility_timeout_s > 0,  # of Redis; without it, what a listener has read is in the inbox alone
    "visibility_timeout": settings.visibility_timeout_s,
    "socket_timeout": 30.0,  # half-open connections are noticed
    "socket_keepalive": True,
}

imports = ("workers.task",)
task_default_queue = RECOVERY_QUEUE  # each listener adds its own queue; Celery's queue "celery" is never made
task_serializer = "json"
accept_content = ["json"]
task_ignore_result = not settings.result_backend  # outcomes are in MongoDB; a backend is for tests that call .get()
result_backend = settings.result_backend or "disabled://"
result_expires = 3600  # seconds; a day of results of every copy would fill a small Redis
task_acks_late = True  # a listener that ends gives its deliveries back …
task_reject_on_worker_lost = True  # … and so does one whose child process dies
task_acks_on_failure_or_timeout = True
task_send_sent_event = False  # Flower would count each event once more for the sender
task_track_started = False

worker_concurrency = settings.concurrency  # a batch is the unit of work
worker_prefetch_multiplier = 1  # what is prefetched is in this listener's hands, so keep it little
worker_send_task_events = True  # Flower shows wins and skips without further options
worker_enable_remote_control = True
worker_hijack_root_logger = False
worker_cancel_long_running_tasks_on_connection_loss = False
worker_proc_alive_timeout = 30.0
