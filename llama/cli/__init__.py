"""`python -m llama`, also installed as `codellama`: one file for each verb.

To add a verb, write `llama/cli/NAME.py` with `SUMMARY`, `DESCRIPTION`, `add_arguments(parser)` and
`run(options)`, like info.py, and enter it in `VERBS` in app.py. Its `run` imports what it needs, so that
`--help` stays fast.
"""

from .app import VERBS, main, make_parser

__all__ = ["VERBS", "main", "make_parser"]
