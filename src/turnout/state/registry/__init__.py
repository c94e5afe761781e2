"""The registry file: reading, writing, merging and inspecting it."""
