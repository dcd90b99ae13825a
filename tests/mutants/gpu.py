"""What runs on CUDA, tested on a pretended GPU."""

from __future__ import annotations

from mutant import Mutant

_TESTS = "tests/gpu/"

MUTANTS = [
    Mutant(
        name="a step runs on whatever device is the current one",
        file="llama/engine/engine.py",
        old="with torch.inference_mode(), current_device(self.model.device):",
        new="with torch.inference_mode(), current_device(torch.device('cpu')):",
        tests=(
            _TESTS + "test_llama_on_gpu.py::test_all_work_is_done_with_the_model_s_device_as_the_current_one",
        ),
    ),
    Mutant(
        name="weights that are no neighbours any more are multiplied as if they were",
        file="llama/distributed/layers.py",
        old="(start != end or whole != memory)",
        new="whole != memory",
        tests=(_TESTS + "test_joined_weights.py",),
    ),
    Mutant(
        name="a hook on one of the joined layers is not called",
        file="llama/distributed/layers.py",
        old="None if hooked(layers) else _joined(layers)",
        new="_joined(layers)",
        tests=(_TESTS + "test_joined_weights.py",),
    ),
    Mutant(
        name="a patched forward of the joined layers is not called",
        file="llama/distributed/layers.py",
        old=" or ColumnParallelLinear.forward is not _FORWARD",
        new="",
        tests=(_TESTS + "test_joined_weights.py::test_a_forward_that_was_patched_is_called",),
    ),
    Mutant(
        name="a buffer is filled again while it is still copied from",
        file="llama/checkpoint/upload.py",
        old="            copied.synchronize()  # the buffer's last copy",
        new="            pass  # the buffer's last copy",
        tests=(_TESTS + "test_upload.py",),
    ),
    Mutant(
        name="weights are copied one buffer at a time",
        file="llama/checkpoint/upload.py",
        old="part.copy_(block, non_blocking=True)",
        new="part.copy_(block)",
        tests=(_TESTS + "test_upload.py::test_loading_copies_from_pinned_memory_alone",),
    ),
    Mutant(
        name="a GPU's steps are as short as a CPU's",
        file="llama/engine/limits.py",
        old='on_cuda = model.device.type == "cuda"',
        new='on_cuda = model.device.type == "mps"',
        tests=(_TESTS + "test_llama_on_gpu.py::test_a_long_prompt_takes_one_step",),
    ),
]
