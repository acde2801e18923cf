"""Benchmark of streaming: a model that computes while it arrives, beside downloading it first, over a link of a set rate."""
