"""The embedded stack: plain processes on loopback that keep all data in one folder."""
