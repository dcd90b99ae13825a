"""Operators with more than one implementation. Each operator has one file, which chooses when it is called.

| operator                     | file         | compiled (AVX512-BF16) | otherwise                                |
|------------------------------|--------------|------------------------|------------------------------------------|
| linear: y = x W^T            | linear.py    | csrc/bf16.c            | oneDNN with packed weights, F.linear     |
| attend: store K and V, then  | attention.py | csrc/attention.c, for  | PyTorch                                  |
| causal attention             |              | one query or a chunk   |                                          |
| rms_norm, rotate             | norms.py     | csrc/bf16.c            | PyTorch                                  |
| sample, log_probabilities    | sampling.py  | csrc/rows.c            | numpy on other CPUs, PyTorch             |
| FusedLayers: all layers      | fused.py     | csrc/bf16.c            | the model's modules                      |

There are two ways through the layers. On a CPU with AVX512-BF16, a step of up to 128 bfloat16 rows is one
native call (fused.py; fused_call.py lays out its arguments). Every other step calls the modules of model.py,
which call the operators above. Both compute the same up to rounding; tests hold both to one oracle.

native.py loads the compiled file and says which tensors each of its functions takes. hooks.py tells whether
calling a module runs more than its class's forward. csrc/ranks.c, the collectives of CPU ranks on one
machine, is in the same compiled file; distributed/shared_memory.py uses it.

To add an implementation: write it beside the others in the operator's file, add its condition where that file
chooses, and its case to tests/kernels. To add a weight format: one more `WeightFormat` in linear.py.

Shapes, tensors and addresses come in as arguments: no file here imports the model, the cache or the ranks.
"""
