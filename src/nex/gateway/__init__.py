"""HTTP in front of functions and services, for those who have no NATS client at hand."""
