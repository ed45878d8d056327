"""The Celery application: ``celery -A app worker -n listener-1@%h``.

Its settings are in ``celeryconfig.py``; the tasks are loaded from ``workers`` by name, so that this package imports nothing
of theirs.
"""

from celery import Celery

app = Celery("dedup")
app.config_from_object("celeryconfig")
