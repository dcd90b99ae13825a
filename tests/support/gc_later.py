"""Imported by conftest.py before all that is large: nothing that is imported ends before the run does.

The collector would look at all of it again and again, a seventh of the time until the first test. conftest.py
lets it run from there on.
"""

import gc

gc.disable()
