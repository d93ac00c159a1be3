"""Runs as folders and as pages: what a person starts, looks at, exports and compares."""
