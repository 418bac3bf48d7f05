"""The daemon on a host: starts machines, takes workloads, answers the control plane."""
