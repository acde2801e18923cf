"""Service: a market over HTTP, one sealed auction per epoch."""
