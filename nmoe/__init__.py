"""nmoe: networked mixture of experts for the edge."""

__version__ = "0.1.0"
