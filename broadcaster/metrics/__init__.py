"""``GET /metrics``: what Prometheus scrapes; docs/metrics.md says what every name means.

| module | does |
|---|---|
| :mod:`broadcaster.metrics.requests` | counts this process's requests |
| :mod:`broadcaster.metrics.deployment` | asks the stores what is true of the whole deployment |
| :mod:`broadcaster.metrics.families` | says both in Prometheus' words; pure functions |
| :mod:`broadcaster.metrics.route` | answers |
"""
