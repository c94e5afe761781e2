"""Health checks of the active daemon, with rollback, restart and back-off."""
