"""Any checkpoint -> a new folder in another layout, number of shards or dtype, or a GGUF file (gguf.py).

plan.py decides which tensors go into which file, conversion.py writes them, output_folder.py makes the folder
appear complete or not at all (atomic_rename.py), companion_files.py reads the small files that are copied,
and file_names.py lists every name that a conversion writes.
"""

from .conversion import Converted, convert
from .gguf import convert_to_gguf, gguf_bytes

__all__ = ["Converted", "convert", "convert_to_gguf", "gguf_bytes"]
