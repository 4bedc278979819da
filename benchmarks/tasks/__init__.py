"""The tasks of engine.py: what is measured, and every system's way to do it."""
