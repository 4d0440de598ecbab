"""autocomp: hardware-aware compression search for trained PyTorch networks."""

__version__ = "0.1.0"
