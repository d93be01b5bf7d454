"""Sinks for a run's events. A sink is a callable that takes an Event; some have `close()`."""
