"""What is said on the wire: subjects and messages as pure data. No sockets, no clock, no keys."""
