"""The runtime: a background thread, guards against errors, and state that survives forks and monkey patches."""
