"""What a library that runs models could change in its host program. Imports nothing of the package under test."""

from __future__ import annotations

import logging
import random

import numpy as np
import torch


def loggers():
    known = [
        logging.getLogger(),
        *(logging.getLogger(name) for name in sorted(logging.root.manager.loggerDict)),
    ]
    return [(each.name, each.level, list(each.handlers), each.propagate, each.disabled) for each in known]


def state():
    """Whatever is global and could be changed by a library that runs models."""
    flags = {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "torch seed": torch.initial_seed(),
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": repr(np.random.get_state()),
        "random generator": random.getstate(),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "mkldnn": (torch.backends.mkldnn.enabled, torch._C._get_mkldnn_enabled()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "sdpa": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
        "process group": torch.distributed.is_initialized(),
        "denormals": torch.tensor([1e-40]).mul(1.0).item() != 0,
        "logging": loggers(),
    }
    return flags
