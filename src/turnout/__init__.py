"""Zero-downtime rollouts for any TCP daemon behind one fixed address."""

__version__ = "0.1.0"
