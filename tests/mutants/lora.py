"""LoRA adapters and wrapped checkpoints: what is merged, who reads it, and what is refused."""

from __future__ import annotations

from mutant import Mutant

_ADAPTED, _ADAPTER, _CONFIG = (
    f"llama/checkpoint/lora/{name}.py" for name in ("adapted", "adapter", "config")
)
_MERGE, _REFUSALS, _RANKS, _COMMANDS, _QUANTIZED = (
    f"tests/checkpoint/lora/test_lora_{name}.py"
    for name in ("merge", "refusals", "ranks", "commands", "quantized")
)
_WRAPPED = "tests/checkpoint/test_wrapped.py"
_LAW = f"{_MERGE}::test_the_weights_are_those_of_merge_and_unload"

MUTANTS = [
    Mutant(
        name="rows of wq and wk are updated in Hugging Face's order",
        file=_ADAPTED,
        old="        if not heads:\n            return slice(*rows)",
        new="        if heads >= 0:\n            return slice(*rows)",
        tests=(_LAW,),
    ),
    Mutant(
        name="the product is made in float32",
        file=_ADAPTED,
        old="change.update.left[own].double(), change.update.right[:, across].double()",
        new="change.update.left[own].float(), change.update.right[:, across].float()",
        tests=(f"{_MERGE}::test_a_weight_has_the_same_bits_in_any_window",),
    ),
    Mutant(
        name="the update is added to the mapped file",
        file=_ADAPTED,
        old="            base.copy_(change.weight[own] if columns is None else change.weight[own, across])",
        new="            base = (change.weight[own] if columns is None else change.weight[own, across]).float()",
        tests=(_LAW,),
    ),
    Mutant(
        name="a changed weight counts as mapped",
        file=_ADAPTED,
        old="return name not in self.adapter.changes and self.source.is_mapped(name)",
        new="return self.source.is_mapped(name)",
        tests=(_LAW,),
    ),
    Mutant(
        name="blocks are made of the window alone",
        file=_ADAPTED,
        old="(first, first + form.columns)",
        new="columns",
        tests=(f"{_QUANTIZED}::test_quantized_weights_are_merged_in_float32_and_quantized_again",),
    ),
    Mutant(
        name="rslora is not looked at",
        file=_CONFIG,
        old="math.sqrt(rank) if self.rslora else rank",
        new="rank",
        tests=(_LAW,),
    ),
    Mutant(
        name="modules_to_save are whole names",
        file=_CONFIG,
        old="any(outer.endswith(each) for",
        new="any(outer == each for",
        tests=(_LAW,),
    ),
    Mutant(
        name="an unknown option is ignored",
        file=_CONFIG,
        old="if value and key not in _INERT | _READ]",
        new="if False]",
        tests=(f"{_REFUSALS}::test_a_config_that_is_not_plain_lora",),
    ),
    Mutant(
        name="A without B is ignored",
        file=_ADAPTER,
        old="    if (a is None) != (b is None):",
        new="    if False:",
        tests=(f"{_REFUSALS}::test_tensors_that_do_not_fit",),
    ),
    Mutant(
        name="a second tensor for the same place wins",
        file=_ADAPTER,
        old="elif kind in parts.setdefault(module, {}):",
        new="elif parts.setdefault(module, {}) is None:",
        tests=(f"{_REFUSALS}::test_tensors_that_do_not_fit",),
    ),
    Mutant(
        name="infinities are values",
        file=_ADAPTER,
        old="part.numel() - int(part.isfinite().sum())",
        new="int(part.isnan().sum())",
        tests=(f"{_REFUSALS}::test_values_that_are_not_finite",),
    ),
    Mutant(
        name="the hash does not know the scaling",
        file=_ADAPTER,
        old='            found.update(f"\\n{name} {scaling}".encode())',
        new='            found.update(f"\\n{name} {scaling is None}".encode())',
        tests=(f"{_RANKS}::test_ranks_with_different_adapters_refuse_all",),
    ),
    Mutant(
        name="ranks do not compare their adapters",
        file="llama/loading.py",
        old="        check_same_adapter(parallel, checkpoint, target)",
        new="        pass",
        tests=(f"{_RANKS}::test_ranks_with_different_adapters_refuse_all",),
    ),
    Mutant(
        name="convert goes round a wrapper",
        file="llama/checkpoint/convert/conversion.py",
        old="    if source.is_mapped(piece.name) and not heads:",
        new="    if not heads:",
        tests=(
            f"{_WRAPPED}::test_converting_reads_through_it",
            f"{_COMMANDS}::test_a_converted_folder_has_it_merged",
        ),
    ),
    Mutant(
        name="an evaluation takes the base for the model",
        file="llama/evaluation/local.py",
        old="agree=False, adapter=llama.adapter",
        new="agree=False",
        tests=(f"{_COMMANDS}::test_an_evaluation_knows_the_model_by_its_adapter_too",),
    ),
    Mutant(
        name="any pattern is run",
        file="llama/checkpoint/lora/patterns.py",
        old="if choices is None or choices > _MOST_CHOICES or with_choices > _MOST_WITH_CHOICES:",
        new="if choices is None or with_choices > _MOST_WITH_CHOICES:",
        tests=(f"{_REFUSALS}::test_patterns_of_many_choices_are_refused",),
    ),
]
