"""Test kit: real servers, contract suites for drivers and providers."""
