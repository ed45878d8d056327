"""The sweeper: sends again what is accepted, unfinished, and in no hands; removes what is finished.

| module | says |
|---|---|
| ``hands`` | whether anybody may still have a batch: a pure decision |
| ``history`` | what was seen of queues and listeners, and when: the facts for that decision |
| ``sweeper`` | one sweep, from its beginning to its end |
| ``backlog`` | its way through the inbox |
| ``retries`` | its way through the failures: those that are due, those that the ledger refutes |
| ``lookup`` | what the claims say about events |
| ``report`` | what one sweep did |
"""
