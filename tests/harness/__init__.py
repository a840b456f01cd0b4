"""What the wire and end-to-end tests are made of: lb as a process, raw clients, scripted backends.

Nothing here imports the data plane: lb is a black box that speaks TCP, signals, files and its admin API.
"""
