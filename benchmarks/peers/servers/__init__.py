"""What the other systems run, each in its own environment: one ONNX Runtime session, bytes of one image in, probabilities out.

These files import nothing of Convoy. What they serve stands in environment variables: ``BENCH_ONNX`` (the file), ``BENCH_NAME``,
``BENCH_SHAPE`` (height, width, channels), ``BENCH_THREADS``, ``BENCH_PORT``, ``BENCH_WORKERS``.
"""
