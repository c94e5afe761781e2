"""TCP sockets: listeners, options, and the kernel's tables of connections."""
