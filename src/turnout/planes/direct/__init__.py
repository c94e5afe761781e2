"""Direct planes: the kernel hands new connections to the active daemon."""
