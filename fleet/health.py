"""The old address of the health checks, for one release: `python -m fleet.workers.health`."""

from fleet.workers.health import main

if __name__ == "__main__":
    main()
