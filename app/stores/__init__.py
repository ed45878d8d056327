"""MongoDB: the only place that decides what is accepted, finished and failed.

| collection | one document per | written by | read with |
|---|---|---|---|
| ``inbox`` | accepted batch of 1 to 500 events, until all of them are finished | doors | majority |
| ``events`` | processed event (the ledger); ``_id`` is the key | listeners, operators | majority |
| ``failures`` | (key, digest) that failed or was refused, with its body | listeners, sweeper | majority |
| ``listeners`` | listener name ever seen | listeners | majority |
| ``meta`` | fact about the deployment | any process at start | majority |

Every document has a version ``v``. Bodies pass through as raw BSON: what the door encoded once is what the ledger keeps.
"""
