"""The machine: processes, memory, devices, speed."""
