"""Benchmark of the mesh: one mixture-of-experts call over nmoe and over its peers, measured alike and side by side in one run."""
