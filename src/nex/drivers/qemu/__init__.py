"""Machines that are QEMU guests: under KVM where that runs one, else emulated; made by restoring a snapshot."""
