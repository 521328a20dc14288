"""Servers and topologies: their metrics, their events, and the spans of discoveries and outages."""
