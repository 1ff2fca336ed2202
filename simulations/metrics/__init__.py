"""Runs as Prometheus sees them: an exporter that replays their folders, live and finished."""
