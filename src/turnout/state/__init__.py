"""The files of a home: locks, builds, journal, registry; their holders, and the rights to change them."""
