"""The keeper: holds the listeners, and is the parent of the router and of the daemons. Standard library only."""
