"""Learners: workers and prices that are learned rather than solved for. Torch and TorchRL come in here, and only when they are used.

``slots`` is the game in slots of time, numpy alone; ``recruitment_env`` beside this folder shows it to PettingZoo. ``mappo`` trains owners
and workers together, ``single_agent`` one planner of all prices; ``workers`` makes a ``WorkerLayer`` of what was learned.
"""
