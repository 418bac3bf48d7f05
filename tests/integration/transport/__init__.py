"""Tests of `nex.transport` against real servers; a package, so that its conftest has a name of its own."""
