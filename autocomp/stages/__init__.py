"""The stages of ``pipeline.py``, one file each: they join the parts and decide nothing that a part can decide."""
