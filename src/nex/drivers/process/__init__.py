"""Machines that are plain child processes: for development, not for strangers' code."""
