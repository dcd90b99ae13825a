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
    Mutant(
        name="a sequence's blocks are read as one run when they are none",
        file="llama/kernels/flash.py",
        old="if count > 2 and table[:count] != array(table.typecode, range(first, first + count)):",
        new="if False:",
        tests=(_TESTS + "test_flash_on_gpu.py::test_what_a_recording_depends_on_is_told",),
    ),
    Mutant(
        name="gathered positions go on behind a sequence's end",
        file="llama/kernels/flash.py",
        old="torch.minimum(place - ends_k[part], lengths[part] - 1)",
        new="place - ends_k[part]",
        tests=("tests/kernels/test_blocks.py",),
    ),
    Mutant(
        name="flash attention is told of all positions in the blocks",
        file="llama/kernels/flash.py",
        old="        numbers.lengths.int(),\n        numbers.tables.int(),",
        new="        (numbers.lengths + 1).int(),\n        numbers.tables.int(),",
        tests=("tests/kernels/test_blocks.py",),
    ),
    Mutant(
        name="single tokens of no past are taken for whole prompts, also in a recording",
        file="llama/kernels/flash.py",
        old=" and len(step.positions) > len(step)",
        new="",
        tests=(_TESTS + "test_flash_on_gpu.py::test_what_a_recording_depends_on_is_told",),
    ),
    Mutant(
        name="a kernel that gives other numbers is taken",
        file="llama/kernels/flash_trial.py",
        old="        if far > _TOLERANCE.get(dtype, 1e-3):",
        new="        if far > 100:",
        tests=(_TESTS + "test_flash_on_gpu.py::test_a_trial_that_fails_leaves_the_plain_way_and_says_why",),
    ),
    Mutant(
        name="each rank has the blocks that suit itself",
        file="llama/model.py",
        old="self._block = self.parallel.smallest(self._best_block(), self.device)",
        new="self._block = self._best_block()",
        tests=(
            _TESTS + "test_flash_on_gpu.py::test_two_ranks_have_the_same_blocks_and_give_what_the_cpu_gives",
        ),
    ),
]
