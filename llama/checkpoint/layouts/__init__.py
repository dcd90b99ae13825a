"""Folder layouts: each module has one subclass of `Checkpoint`, listed in `opening.LAYOUTS`."""
