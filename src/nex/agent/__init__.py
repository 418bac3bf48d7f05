"""The program in a machine: runs one workload through a provider."""
