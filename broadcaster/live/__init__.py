"""The live page at ``/``: what listeners do with events, as it happens, and what an operator can do about failures.

| module | holds |
|---|---|
| ``page`` | the page's files, and under which rules a browser may run them |
| ``sample`` | which events are shown, so that a page stays readable and small at any rate |
| ``relay`` | hears in Redis what listeners tell, while somebody watches |
| ``watchers`` | Socket.IO namespace ``/watch``: who watches, and what they are told |
| ``failures`` | the routes that list failures and take decisions about them |

Nothing here is in the way of an event: without a page that is open, none of it does anything.
"""
