"""Servers and topologies: their metrics and background events, and spans for discoveries and outages."""
