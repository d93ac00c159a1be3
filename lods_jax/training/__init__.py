"""A configuration turned into a loop of compiled steps: numbers, no files for people."""
