"""What a call of `Llama` takes and returns, and how it runs on the engine."""
