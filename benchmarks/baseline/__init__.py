"""Backends to measure ours against, as models of Triton's Python backend: each file is a ``model.py``.

``first.py`` is the first backend, frozen as it was; ``ceiling.py`` does what any backend in Python must do, and nothing else;
``empty.py`` does not even infer. None is for use.
"""
