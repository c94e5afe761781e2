"""Verbs that change a service, from their plan to the state they leave."""
