"""Everything that touches the machine, except client bytes."""
