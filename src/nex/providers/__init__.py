"""How an agent runs one kind of workload. Guest rooms: they import no host room and know no NATS."""
