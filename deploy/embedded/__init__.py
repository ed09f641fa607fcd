"""The embedded stack: plain processes on loopback, in one folder."""
