"""Old location of the health checks, kept for one release; now `fleet.workers.health`."""

from fleet.workers.health import main

if __name__ == "__main__":
    main()
