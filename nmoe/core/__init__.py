"""Core: the nouns every other part shares. Errors, seeds, files and bundles."""
