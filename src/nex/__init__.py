"""Nex, the NATS Execution Engine."""

__version__ = "0.3.0"
