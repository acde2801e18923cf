"""Transports: how messages travel between nodes. ``memory`` within a process, ``zenoh`` between processes and machines."""
