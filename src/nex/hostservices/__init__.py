"""What a workload may ask of its node: key-value stores, object stores, messages and the web."""
