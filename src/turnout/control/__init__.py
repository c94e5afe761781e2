"""Clients of the keeper's and the router's control sockets, for verbs."""
