"""What an event is: its value, key, digest, the policies of its type, and how it is read at a door.

The domain: pure functions and values. Nothing here opens a socket or knows Redis, MongoDB or Celery.
"""
