"""Protocols as pure functions, both ends of each in one file: no socket, clock, file or chance."""
