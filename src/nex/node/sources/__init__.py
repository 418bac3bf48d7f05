"""Where the events of a workload come from, beside plain subjects: streams, buckets and the clock."""
