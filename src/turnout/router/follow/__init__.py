"""Follows the registry, the settings and turnout.toml while the router runs."""
