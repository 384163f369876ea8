"""Baton's client SDK: typed clients of the four services, the run-file schema and the `baton` command."""

__version__ = "0.1.0"
