"""The bridge: takes what broadcasters announce over Socket.IO and puts it, as Celery tasks, on every live listener's queue.

| module | does |
|---|---|
| ``feed`` | listens to a broadcaster's namespace ``/bridge`` |
| ``intake`` | holds what was announced until it is forwarded: bounded, dropping |
| ``forwarder`` | one task per live listener and batch; notes what was sent |
| ``foreign`` | listens to somebody else's Socket.IO server and accepts its events (``buffer``, ``malformed``) |
| ``link``, ``client`` | the connection of both, which comes back, and its Socket.IO client |
| ``watch`` | knows which listeners live, and whether this bridge is the active one |
| ``process`` | runs these, and the sweeper, in one process |

Guarantees: none that anything rests on. Whatever a bridge drops, misses, or takes down with it waits in the inbox, and the sweeper
sends it. What a bridge adds is speed: an event is on its way within milliseconds.
"""
