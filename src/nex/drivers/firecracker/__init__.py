"""Machines that are Firecracker microVMs, each in a jail of its own: for production."""
