"""`python -m llama`, the same as `codellama`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
