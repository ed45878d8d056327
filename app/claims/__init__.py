"""Claims in Redis: who works on a key now, and which keys were done lately. A cache that may be lost whole."""
