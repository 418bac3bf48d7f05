"""How a kind of machine is made, watched and destroyed. Host rooms: they know no NATS and no provider."""
