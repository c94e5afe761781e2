"""Health checks of one daemon: by connection, HTTP, a command, or its listener alone."""
