"""File formats of weights, each with a reader (file -> `TensorFile`, mapped and checked) and a writer."""
