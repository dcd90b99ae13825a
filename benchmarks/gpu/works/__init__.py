"""What the parts measure: each module has a `run`."""
