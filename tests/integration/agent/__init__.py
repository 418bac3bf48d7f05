"""Tests of `nex.agent` on a real private server, in real machines."""
