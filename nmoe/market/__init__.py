"""Market: who trains for what pay (ASOSA), and who is served at which price (AERIA)."""
