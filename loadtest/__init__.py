"""Measures a running server over HTTP; imports nothing of the server's own packages."""
