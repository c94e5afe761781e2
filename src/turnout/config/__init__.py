"""Settings: read from flags, the environment and turnout.toml, checked, and resolved for one service."""
