"""The local supervisor: starts a run's services as processes of this machine, watches them, and ends every one (Linux)."""
