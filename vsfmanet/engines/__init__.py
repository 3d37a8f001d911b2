"""What runs the parts of a `LevelNetwork`, each with the interface `vsfmanet.networks.description.Parts`.

`cuda` records the parts in torch as CUDA graphs; `onnx` runs exported graphs in onnxruntime, `tensorrt` in TensorRT.
"""
