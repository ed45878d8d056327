"""The sweeper: sends again what is accepted, unfinished, and in no hands; removes what is finished.

| module | says |
|---|---|
| ``hands`` | whether anybody may still have a batch: a pure decision |
| ``history`` | what was seen of queues and listeners, and when: the facts for that decision |
| ``sweeper`` | one sweep: the inbox |
| ``retries`` | one sweep: the failures that are due, and those that the ledger refutes |
| ``lookup`` | what MongoDB and the claims say about events |
"""
