"""The network, where it computes, and its checkpoints."""
