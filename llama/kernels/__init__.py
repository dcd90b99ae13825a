"""Operators with more than one implementation, and the one table that chooses.

| operator                     | rows of table.py, best first                                     |
|------------------------------|------------------------------------------------------------------|
| linear: y = x W^T            | csrc/linear.c, quantized.c, blocks.c, pack.c; oneDNN with        |
|                              | packed weights; torch's int4 on CUDA; F.linear                   |
| layers: all layers at once   | csrc/layers.c; the model's modules                               |
| attention: store K and V,    | csrc/attention.c, lanes.c; torch's flash kernel on CUDA, where   |
| then causal attention        | a trial gives the right numbers; PyTorch                         |
| norm, rotation               | csrc/norms.c; PyTorch                                            |
| embedding                    | PyTorch                                                          |
| draw, scores (of logits)     | csrc/rows.c; PyTorch                                             |

What callers use: operators.py (each function looks up its row), weights.py (`PackedWeight`, a weight and its
product), fused.py (whole layers). Steps of up to 128 rows go through all layers in one call of the row `layers`, if
that is csrc's; every other step runs the modules of model.py, which call the operators. Both compute the same up to
rounding; tests hold both to one oracle.

Quantized weights: quantized.py has their numbers, as checkpoints give them; quantized_weights.py lays them out for
csrc, and has the reference of their product; torch_int4.py lays them out for CUDA; quantizers.py makes them.

Below the table: native.py (`Kernels`: csrc's functions on tensors), compiled.py (opens the library of the best level
of levels.py that this CPU runs), onednn.py, flash.py and its trial in flash_trial.py (torch's attention on CUDA), and
the references in plain torch: attention.py, norms.py, sampling.py.
fused_call.py lays out the arguments of whole layers; hooks.py tells whether calling a module runs more than its
class's forward; report.py prints what the table chooses here; collectives.py hands out csrc/ranks.c.

Nothing outside this folder asks what a CPU can do. Shapes, tensors and addresses come in as arguments: no file here
imports the model, the cache or the ranks. docs/kernels.md says how to add a row, a format or a level.
"""
