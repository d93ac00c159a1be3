"""Runs as folders and pages: started, resumed, looked at, exported and compared."""
