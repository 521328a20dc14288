"""Commands: their spans and metrics."""
