"""What runs beside an engine: it relays the engine's cache events and load, and says who is there."""
