"""Handlers to try out, and to copy from: ``DEDUP_HANDLERS=workers.examples.departures``."""
