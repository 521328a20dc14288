"""Connection pools: their metrics, and a span for each checkout that failed."""
