"""Socket activation at bind(2): a daemon that binds its own port gets the address that turnout gives it."""
