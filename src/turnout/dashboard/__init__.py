"""The dashboard: a page in a browser, served to this machine alone by a process of its own (extra ``web``)."""
