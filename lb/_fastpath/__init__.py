"""The data plane: compiled, without the GIL. Python objects stand in the engine and in the files it is made of only."""
