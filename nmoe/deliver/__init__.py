"""Deliver: models brought to devices that start to infer while the model still downloads.

One half plans: which model for whom, which share of the bandwidth, which clocks (``scenario``, ``clocks``, ``allocate``, ``baselines``,
``power``), checked by ``forward``. The other half does it: any PyTorch model run layer by layer as its bytes arrive.
"""
