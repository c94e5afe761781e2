"""Draining: connections of retired daemons and of a replaced router."""
