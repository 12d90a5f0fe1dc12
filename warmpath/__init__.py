"""KV-aware routing and scheduling for SGLang: one command, `warmpath`, for all parts."""

__version__ = "0.1.0"
