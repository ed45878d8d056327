"""Flower's settings: ``celery -A app flower`` reads this file from the working folder.

A win is SUCCESS (``won 250``); a task that won nothing is SKIPPED and its result says who has it, or FAILURE, RETRY or LEFT. In the
search box: ``state:SKIPPED``, ``worker:listener-1``, ``result:won``, or any part of a key. Links: ``/tasks?state=SKIPPED&worker=listener-1``.
"""

import sys

from app import telemetry
from celeryconfig import settings

telemetry.configure("flower")

if not (settings.loopback or settings.flower_auth):
    sys.exit("dedup: Flower outside loopback needs a password: set DEDUP_FLOWER_AUTH=user:password")

address = settings.host
port = settings.flower_port
if settings.flower_auth:
    basic_auth = [settings.flower_auth]
tasks_columns = "uuid,state,args,result,received,runtime,worker"
max_tasks = 10_000  # the newest ones; the ledger has them all
max_workers = 500
purge_offline_workers = settings.listener_retire_s
natural_time = False
