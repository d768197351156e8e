"""Triton's Python-based backend ``onnxruntime``: a stand-in for NVIDIA's C++ backend of that name, under the same configuration.

``model.TritonPythonModel`` is what Triton's backend process runs; it alone needs ``triton_python_backend_utils``. The process
loads numpy and onnxruntime, and neither grpc nor torch.

========================  ================================================================================================
module                    holds
========================  ================================================================================================
``model``                 Triton's side: configuration in, requests in, responses out
``options``               what ``config.pbtxt`` asks of ONNX Runtime, and what of it cannot be honoured
``accelerator``           of that, the execution providers' part: CUDA, TensorRT, OpenVINO
``refusal``               of that, what would make answers wrong
``value``                 the kinds of values that the configuration's strings stand for
``session``               the ONNX file opened: execution providers, threads
``threads``               how many threads, by measuring
``border``                the tensors at the file's border, held against the configuration, or completing it
``scalar``                tensors without axes, met by tensors of one element
``batch``                 requests joined, run once, and split again
========================  ================================================================================================
"""
