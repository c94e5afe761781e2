"""The ways in which bytes get from a client to the active daemon."""
