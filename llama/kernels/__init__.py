"""Operators with more than one implementation. Each operator has one file, which chooses when it is called.

| operator                     | file         | compiled               | otherwise                                |
|------------------------------|--------------|------------------------|------------------------------------------|
| linear: y = x W^T            | linear.py    | csrc/linear.c, pack.c  | oneDNN with packed weights, F.linear     |
| attend: store K and V, then  | attention.py | csrc/attention.c,      | PyTorch                                  |
| causal attention             |              | lanes.c                |                                          |
| rms_norm, rotate             | norms.py     | csrc/norms.c           | PyTorch                                  |
| sample, log_probabilities    | sampling.py  | csrc/rows.c            | numpy on other CPUs, PyTorch             |
| FusedLayers: all layers      | fused.py     | csrc/layers.c          | the model's modules                      |

There are two ways through the layers. On a CPU with kernels, a step of up to 128 rows is one native call
(fused.py; fused_call.py lays out its arguments). Every other step calls the modules of model.py,
which call the operators above. Both compute the same up to rounding; tests hold both to one oracle.

levels.py lists the levels of CPUs for which csrc/ is compiled, compiled.py opens the library of the best one,
native.py says which tensors each of its functions takes. hooks.py tells whether calling a module runs more than
its class's forward. csrc/ranks.c, the collectives of CPU ranks on one machine, is in the library for any CPU;
distributed/shared_memory.py uses it.

To add an implementation: write it beside the others in the operator's file, add its condition where that file
chooses, and its case to tests/kernels. To add a weight format: one more `WeightFormat` in linear.py.

Shapes, tensors and addresses come in as arguments: no file here imports the model, the cache or the ranks.
"""
