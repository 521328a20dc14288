"""Commands: each one a span and a measurement."""
