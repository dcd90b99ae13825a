"""What a model is: changes of it, the fused step, what is said of a checkpoint, and kernels that are not there."""

from __future__ import annotations

from mutant import Mutant

__all__ = ["MUTANTS"]

WATCH, FUSED = ("tests/engine/test_model_watch.py",), ("tests/kernels/test_fused.py",)

MUTANTS = [
    Mutant(
        name="an edit in place leaves the prefixes",
        file="llama/engine/model_watch.py",
        old="return 0 if tensor.is_inference() else tensor._version",
        new="return 0",
        tests=WATCH,
    ),
    Mutant(
        name="a weight with other memory leaves the prefixes",
        file="llama/engine/model_watch.py",
        old="return 0 if tensor.is_mkldnn else tensor.data_ptr()",
        new="return 0",
        tests=WATCH,
    ),
    Mutant(
        name="a hook on one module leaves the prefixes",
        file="llama/engine/model_watch.py",
        old="equal += [(*m._forward_pre_hooks, *m._forward_hooks) for m in modules]",
        new="equal += [(*model._forward_pre_hooks, *model._forward_hooks)]",
        tests=WATCH,
    ),
    Mutant(
        name="a hook that came and went is not seen",
        file="llama/engine/model_watch.py",
        old="if self._seen is not None and RemovableHandle.next_id != self._handles:",
        new="if self._seen is None:",
        tests=WATCH,
    ),
    Mutant(
        name="the watch keeps replaced weights in memory",
        file="llama/engine/model_watch.py",
        old="*map(weakref.ref, tensors)",
        new="*tensors",
        tests=WATCH,
    ),
    Mutant(
        name="what runs when the model changes is retained",
        file="llama/engine/cache_manager.py",
        old="stale, sequence.stale = sequence.stale, False",
        new="stale = sequence.stale = False",
        tests=WATCH,
    ),
    Mutant(
        name="what was preempted stays stale",
        file="llama/engine/cache_manager.py",
        old="stale, sequence.stale = sequence.stale, False",
        new="stale = sequence.stale",
        tests=WATCH,
    ),
    Mutant(
        name="samples of a stale prompt count as fresh",
        file="llama/engine/sequence.py",
        old="            stale=self.stale,\n",
        new="",
        tests=WATCH,
    ),
    Mutant(
        name="a request waits for a stale prefix",
        file="llama/engine/cache_manager.py",
        old="coming = leader.blocks and not leader.stale and",
        new="coming = leader.blocks and",
        tests=WATCH,
    ),
    Mutant(
        name="forget_prefixes forgets nothing",
        file="llama/engine/model_watch.py",
        old="        self._told_changes += 1\n",
        new="        pass\n",
        tests=WATCH,
    ),
    Mutant(
        name="weights loaded within inference_mode do not count edits",
        file="llama/loading.py",
        old="@torch.inference_mode(False)  # weights made in inference mode do not count their edits\n",
        new="",
        tests=WATCH,
    ),
    Mutant(
        name="the fused step ignores hooks",
        file="llama/kernels/fused.py",
        old="            and not hooked(modules)\n",
        new="",
        tests=FUSED,
    ),
    Mutant(
        name="the fused step ignores hooks on all modules",
        file="llama/kernels/hooks.py",
        old="if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:",
        new="if torch_module._global_forward_hooks:",
        tests=FUSED,
    ),
    Mutant(
        name="the fused step ignores modules of another kind",
        file="llama/kernels/fused.py",
        old="list(map(type, modules)) == self._kinds",
        new="len(modules) == len(self._kinds)",
        tests=FUSED,
    ),
    Mutant(
        name="the fused step ignores the order of the layers",
        file="llama/kernels/fused.py",
        old="all(attention.layer == layer for layer,",
        new="all(attention.layer >= 0 for _,",
        tests=FUSED,
    ),
    Mutant(
        name="the fused step takes weights of another size",
        file="llama/kernels/fused.py",
        old="    return weight.shape == (size if len(size) == 1 else native.packed_shape(size, weight.dtype))\n",
        new="    return True\n",
        tests=FUSED,
    ),
    Mutant(
        name="the fused step keeps the rotation it began with",
        file="llama/kernels/fused.py",
        old="        table = rotary_pairs(position_T, self._shape.head_dim, theta)\n",
        new="        self._theta = vars(self).get('_theta', theta)\n"
        "        table = rotary_pairs(position_T, self._shape.head_dim, self._theta)\n",
        tests=FUSED,
    ),
    Mutant(
        name="info tells a training context from rope_theta alone",
        file="llama/sizing/family.py",
        old="    if member is None:\n        return None\n    if args.rope_theta == 1e6:\n        return 16384\n",
        new="    if args.rope_theta == 1e6:\n        return 16384\n    if member is None:\n        return None\n",
        tests=("tests/cli/test_verbs.py::test_info_of_the_bundled_model",),
    ),
    Mutant(
        name="auto asks the first GPU",
        file="llama/loading.py",
        old="torch.cuda.get_device_capability(device)",
        new="torch.cuda.get_device_capability(0)",
        tests=("tests/test_loading.py::test_auto_asks_the_gpu_that_was_chosen",),
    ),
    Mutant(
        name="the table of what differs leaves out a name that is gone",
        file="docs/reference-code.md",
        old="| `reshape_for_broadcast` | nothing; `apply_rotary_emb` does without |\n",
        new="",
        tests=("tests/api/test_compat.py::test_docs_say_what_differs",),
    ),
    Mutant(
        name="a pack that was cast goes to the kernel",
        file="llama/kernels/linear.py",
        old="        or not stored.multiplies(weight)  # it was cast since\n",
        new="",
        tests=("tests/kernels/test_linear.py::test_a_packed_weight_that_was_cast_is_still_multiplied",),
    ),
    Mutant(
        name="the kernel for chunks takes heads that are too large",
        file="llama/kernels/native.py",
        old="return (q_THD.shape[0] == 1 or q_THD.shape[2] <= _MAX_HEAD_DIM) and _runs(q_THD, 2 * LANES)",
        new="return _runs(q_THD, 2 * LANES)",
        tests=("tests/kernels/test_attend.py",),
    ),
    Mutant(
        name="the kernel for norms takes weights of another dtype",
        file="llama/kernels/native.py",
        old="return _runs(x, LANES) and weight.dtype == x.dtype and weight.is_contiguous()",
        new="return _runs(x, LANES) and weight.is_contiguous()",
        tests=("tests/kernels/test_norms.py",),
    ),
    Mutant(
        name="tokens are stored one position late",
        file="llama/kernels/attention.py",
        old="    end = start + k_TKD.shape[0]\n",
        new="    start, end = start + 1, start + 1 + k_TKD.shape[0]\n",
        tests=("tests/test_kv_cache.py",),
    ),
    Mutant(
        name="oneDNN compiles for every number of rows",
        file="llama/kernels/linear.py",
        old="    padded = _onednn_rows(rows)\n",
        new="    padded = rows and max(_FEWEST_ROWS, rows)\n",
        tests=("tests/kernels/test_linear.py::test_onednn_is_given_few_numbers_of_rows",),
    ),
    Mutant(
        name="a kernel that was not compiled is not spoken of",
        file="llama/loading.py",
        old="        _log_missing_kernels(missing)\n",
        new="        pass\n",
        tests=("tests/kernels/test_missing_kernels.py::test_it_is_said_once",),
    ),
    Mutant(
        name="a compiler's failure leaves no reason",
        file="setup.py",
        old='    cmdclass={"build_ext": BuildKernels},\n',
        new="",
        tests=("tests/kernels/test_missing_kernels.py::test_a_compiler_that_fails_leaves_its_reason",),
    ),
]
