"""The state of a service and of its home, in the form in which every view prints it."""
