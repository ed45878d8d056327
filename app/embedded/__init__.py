"""Valkey and MongoDB out of wheels, for trying out and for tests; production brings its own servers."""
