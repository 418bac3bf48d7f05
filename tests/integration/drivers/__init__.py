"""Tests of `nex.drivers` with real machines."""
