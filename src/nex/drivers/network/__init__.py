"""A network for machines that need one: a tap in a namespace of its own, behind an allow-list.

Machines have none by default: their agents talk to the node over a byte stream. Where the configuration asks for it,
each machine gets a network namespace with a tap in it; what its guest sends is filtered there and once more on the
host, and leaves with the host's address. How it is laid out and why: docs/howto/production/network.md.
"""
