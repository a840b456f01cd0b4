"""The data plane: compiled, without the GIL, without Python objects outside engine.pyx."""
