"""Tests of `nex.hostservices` against real servers; a package, so that its files have names of their own."""
