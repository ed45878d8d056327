"""What every process of the system shares: settings, events, claims, stores.

This package imports neither ``workers`` nor ``broadcaster``; both import it.
"""

__version__ = "0.1.0"
