"""The router: accepts clients, follows the registry, checks daemons, and drains old ones."""
