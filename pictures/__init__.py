"""The pictures of README and docs, made of what really runs: `make pictures`."""
