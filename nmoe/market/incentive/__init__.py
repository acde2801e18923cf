"""Incentive: who trains how much for what pay (ASOSA): a game between a task publisher, model owners and workers."""
