"""The stream plane: asyncio transports, portable and slower than the relay."""
