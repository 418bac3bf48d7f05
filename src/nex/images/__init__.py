"""Guest images: a kernel, a first stage that loads its modules, and a root file system with Python and the agent.

Everything is made from what this host has: no container engine, no privileges, no network but for the system's own
packages. An image is named by its content, is never changed, and is kept in a `nex.images.store.ImageStore`.
"""
