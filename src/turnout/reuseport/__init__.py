"""The SO_REUSEPORT group at a fixed address, shared by the keeper, the router and the daemons."""
