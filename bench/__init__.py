"""Benchmarks: how fast, how much memory, how soon again. ``python -m bench NAME``, ``make bench``.

| module | does |
|---|---|
| ``rig`` | a whole system of its own: embedded servers, broadcaster, bridge, listeners; audited at its end |
| ``load``, ``producers``, ``wire``, ``foreign`` | events as bytes, and those who send them, in processes of their own |
| ``naive`` | the usual way, to compare with |
| ``handlers`` | the handlers that the listeners load |
| ``arrivals``, ``filling`` | when events reach the ledger; a ledger that is full before |
| ``capacity`` | bytes that an event takes in each store and at each moment of its way |
| ``measures`` | rows, medians, targets, charts: what a benchmark answers |
| ``benchmarks`` | one module per benchmark |
| ``record``, ``report``, ``charts`` | results as JSON; the tables and pictures of ``docs/performance.md`` |

Guaranteed: no benchmark touches a server that it did not start; one whose system loses an event, processes one twice or leaves one
unfinished ends in an error and says no figure. Not guaranteed: that a figure is that of an idle machine; run it on one.
"""
