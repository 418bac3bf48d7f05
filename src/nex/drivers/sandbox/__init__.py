"""Machines that are sandboxes of this host's kernel: namespaces, Landlock, seccomp, control groups."""
