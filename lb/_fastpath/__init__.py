"""The data plane: compiled, without the GIL, without Python objects but in engine.pyx and those it is made of."""
