"""Processes, memory, devices and speed of the machine that a run uses."""
