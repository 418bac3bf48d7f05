"""The only importer of the NATS client library, and the runner of nats-server."""
