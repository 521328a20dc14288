"""OpenTelemetry: providers, instruments and the names of everything that is emitted."""
