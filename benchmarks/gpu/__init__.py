"""`make gpu`: tests and measures the package on a machine with a GPU, in parts that are processes.

    __main__.py   the command line, and what must be there before anything runs
    parts.py      the parts, most valuable first
    driver.py     runs them: limits of time, process groups, what was done before
    results.py    results.json, and which state of the code it belongs to
    figures.py    a figure, and its bound from the run's own ceilings
    report.py     results.md
    clocks.py     what nvidia-smi says while a part runs
    libraries.py  libraries that this Python lacks, from a folder of wheels; `make gpu-wheels` fills it
    probe.py      what this Python and its GPU are
    measure.py    one part, in its own process; the device is real or pretended
    models.py     random weights on the device, and what a step must move and compute
    works/        what each part measures

All files but probe.py, measure.py, models.py and works/ do without torch.
"""
