"""Keys, claims, sealed boxes, minted credentials and policy. Pure: no sockets, no clock but an argument."""
