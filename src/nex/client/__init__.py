"""The library for everybody who is no node: find nodes, deploy, stop, watch."""
