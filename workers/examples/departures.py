"""A running count of departures per airport, exact after any crash.

The count is written in the transaction that commits the event: both stand, or neither. So no departure is counted twice, and
none is left out, although every listener gets every event.
"""

from app.events.event import Event
from workers import Context, handler


@handler("flight.departed")
def count_departure(event: Event, context: Context) -> None:
    """Add one to the airport that the flight left."""
    context.db["departures_by_airport"].update_one({"_id": event.data["origin"]}, {"$inc": {"count": 1}}, upsert=True)
