"""A container's health check: `python -m services.common.health_check HOST:PORT` ends with 0 if a service answers there."""

import argparse
import asyncio

from baton.local.health import is_serving

DEADLINE_S = 3.0


def main() -> None:
    """Exits with 0 if the service says that it is serving, with 1 and the address if not."""
    parser = argparse.ArgumentParser(description="Asks a Baton service for its gRPC health.")
    parser.add_argument("address", metavar="HOST:PORT")
    address = parser.parse_args().address
    if not asyncio.run(is_serving(address, DEADLINE_S)):
        raise SystemExit(f"nothing at {address} said within {DEADLINE_S:g} s that it is serving; see the service's log")


if __name__ == "__main__":
    main()
