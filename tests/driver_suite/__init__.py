"""PyMongo's own tests, run on FerretDB without and with the instrumentation on: it may change no test's outcome."""
