"""A checkpoint for other runtimes: GGUF, Ollama, ONNX, AOTInductor, int8; each one certified."""
