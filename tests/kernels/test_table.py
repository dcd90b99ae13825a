"""Laws of the table: the last row takes everything, a reason is given where a better one is not taken, and nobody else
asks what a CPU can do."""

from __future__ import annotations

import ast
import itertools
import re
from typing import Any

import pytest
import torch
from compiled_levels import implemented, rows_of
from pools import single_step
from quantized_models import quantized
from ranks import ROOT

from llama.kernels import compiled, native, operators, report
from llama.kernels import quantized as numbers
from llama.kernels.cached import INT8, quantize
from llama.kernels.native import DTYPES, Kernels
from llama.kernels.norms import rotary_table
from llama.kernels.quantized import FORMATS, Blocks, dequantize
from llama.kernels.quantized_weights import QuantizedFormat
from llama.kernels.sampling import Decided
from llama.kernels.table import ROWS, Case, Row, choose, implementation, is_native
from llama.kernels.weights import PackedWeight, WeightFormat
from llama.sampling import SamplingParams

KERNELS: list[Kernels | None] = [None, *filter(None, map(native.open_kernels, compiled.runnable()))]
SIZES = [{}, {"width": 20}, {"head_dim": 24}, {"head_dim": 288}, {"hidden": 33}, {"group": 128}]


def cases() -> list[Case]:
    formats = (*DTYPES, torch.float64, *FORMATS)
    product = itertools.product(formats, ("cpu", "cuda", "meta"), KERNELS, SIZES)
    return [Case(form, device, kernels, **sizes) for form, device, kernels, sizes in product]


@pytest.mark.parametrize("operator", ROWS)
def test_the_last_row_takes_everything_and_the_others_say_why_not(operator: str) -> None:
    for case in cases():
        *better, last = ROWS[operator]
        assert last.why_not(case) is None
        chosen = choose(operator, case)
        for row in better[: ROWS[operator].index(chosen)]:
            reason = row.why_not(case)
            assert reason
            assert re.fullmatch(r"[a-z][^.\n]{5,90}", reason), reason
        assert is_native(operator, case) == (chosen is not last)


@pytest.mark.parametrize("operator", sorted(ROWS.keys() - {"embedding"}))
def test_csrc_is_taken_wherever_it_can_be(operator: str) -> None:
    for kernels in KERNELS:
        if kernels is None:
            continue
        for form in formats_of(operator):
            good = Case(form, "cpu", kernels, width=768, head_dim=64, hidden=2048, group=32)
            assert choose(operator, good).name == "csrc"
            for other in (
                good._replace(format=torch.float64),
                good._replace(device="cuda"),
                good._replace(kernels=None),
            ):
                assert choose(operator, other).name != "csrc"


def formats_of(operator: str) -> list[torch.dtype | str]:
    """Those that csrc/ takes."""
    if operator in ("draw", "scores"):
        return [torch.float32]
    more = {"linear": [*FORMATS], "attention": [INT8]}
    return [*DTYPES, *more.get(operator, [])]


def _quantized(form: WeightFormat, blocks: Blocks) -> PackedWeight:
    """In a format, or plain where it is none for quantized weights."""
    if isinstance(form, QuantizedFormat):
        return form.pack_blocks(blocks, blocks.form.columns, torch.float32)
    return form.pack(dequantize(blocks))


def given(operator: str, dtype: torch.dtype | str, implemented: Any, reference: Any) -> list[tuple[Any, Any]]:
    """(result, reference's result) of an operator, on the same random numbers."""
    of_rows = torch.float32 if isinstance(dtype, str) else dtype

    def make(*shape: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(of_rows)

    found = []
    for rows in (1, 3, 40):
        if operator == "linear" and isinstance(dtype, str):
            blocks, x = quantized(dtype, make(37, 96, seed=1), 32), make(rows, 96)
            both = (_quantized(form, blocks).linear(x) for form in (implemented, reference))
        elif operator == "linear":
            weight, x = make(37, 45, seed=1), make(rows, 45)
            both = (form.pack(weight).linear(x) for form in (implemented, reference))
        elif operator == "attention":
            each = (make(rows, 4, 64), make(rows, 2, 64, seed=1), make(rows, 2, 64, seed=2))
            stores = [make(2, 60, 1, 64, seed=seed) for seed in (3, 4)]
            stores = [quantize(x) for x in stores] if dtype == INT8 else stores
            steps = single_step(stores[0], 17, rows), single_step(stores[0], 17, rows)
            both = (
                row(*each, *(x.clone() for x in stores), step)
                for row, step in zip((implemented, reference), steps, strict=True)
            )
        elif operator == "norm":
            both = (row(make(rows, 48), make(48, seed=1), 1e-5) for row in (implemented, reference))
        elif operator == "rotation":
            table = rotary_table(torch.arange(rows) * 31, 32, 1e4)
            both = (row(make(rows, 2, 32), table) for row in (implemented, reference))
        elif operator == "embedding":
            both = (row(torch.arange(rows), make(50, 8)) for row in (implemented, reference))
        elif operator == "draw":
            params = [
                SamplingParams(0.7, top_p) for _, top_p in zip(range(rows), itertools.cycle((0.0, 0.9, 1.0)))
            ]
            logits, drawn = make(rows, 99), make(rows, 99, seed=1)
            both = (_stacked(row(logits, drawn, params, [0.37] * rows)) for row in (implemented, reference))
        else:
            assert operator == "scores"
            both = (row(make(rows, 99), torch.arange(rows)) for row in (implemented, reference))
        found.append(tuple(both))
    return found


def _stacked(found: Decided) -> torch.Tensor:
    """Ids, log-probabilities and counts as one tensor."""
    return torch.tensor(found, dtype=torch.float32)


EACH = [
    pytest.param(operator, *each.values, id=f"{operator}-{each.id}")
    for operator in sorted(ROWS.keys() - {"layers"})  # fused.py's: test_fused_laws.py
    for each in rows_of(operator, formats_of(operator))
]


@pytest.mark.parametrize(("operator", "row", "level", "dtype"), EACH)
def test_every_row_computes_what_the_reference_does(
    operator: str, row: Row, level: str, dtype: torch.dtype | str
) -> None:
    """Up to rounding, of x to 8 bits too where weights are quantized; each operator's own tests say more. A new row is
    in this test at once."""
    case = Case(dtype, "cpu", None, group=32)
    reference = ROWS[operator][-1].implement(case)
    for got, wanted in given(operator, dtype, implemented(row, level, case), reference):
        assert got.dtype == wanted.dtype
        tolerance = 1e-4 if got.dtype == torch.float32 else 0.06
        if operator == "linear" and isinstance(dtype, str):
            tolerance = 0.3
        torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)


# What a size of a case keeps from csrc/; all others stay.
KEPT = {
    ("width", 776): {"norm", "layers"},
    ("head_dim", 24): {"attention", "rotation", "layers"},
    ("head_dim", 48): {"attention", "layers"},
    ("head_dim", 288): {"attention", "layers"},
    ("hidden", 33): {"layers"},
}


@pytest.mark.parametrize(("name", "size"), KEPT)
def test_sizes_that_a_kernel_has_no_vectors_for(name: str, size: int) -> None:
    for kernels in KERNELS[1:]:
        case = Case(torch.float32, "cpu", kernels)._replace(**{name: size})
        refused = {
            operator for operator in ROWS if operator != "embedding" and choose(operator, case).name != "csrc"
        }
        assert refused == KEPT[name, size]


def test_logits_of_another_dtype_than_float32_go_to_the_reference() -> None:
    """C would read past their end."""
    for operator, dtype in itertools.product(("draw", "scores"), (torch.float16, torch.bfloat16)):
        for kernels in KERNELS:
            assert choose(operator, Case(dtype, "cpu", kernels)).name == "torch"


def test_a_choice_is_remembered_for_each_kernels() -> None:
    for kernels in KERNELS[1:]:
        case = Case(torch.float32, "cpu", kernels, width=64)
        assert implementation("norm", case) is implementation("norm", Case(*case))
        assert implementation("norm", case).__self__ is kernels


@pytest.mark.parametrize("kernels", KERNELS, ids=str)
def test_the_report_names_every_operator_and_every_reason(
    kernels: Kernels | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "kernels", lambda: kernels)
    sizes = {"width": 772, "head_dim": 288, "hidden": 2048}
    lines = list(report.describe(torch.bfloat16, **sizes))
    table = [line.split(maxsplit=4) for line in lines[lines.index("") + 2 :]]
    on_cpu = {
        operator: (row, *why)
        for operator, form, device, row, *why in table
        if device == "cpu" and form not in FORMATS
    }
    assert {form for operator, form, *_ in table if operator == "linear"} == {"bfloat16", *FORMATS}
    assert on_cpu.keys() == ROWS.keys()
    for operator, (name, *why) in on_cpu.items():
        logits = operator in ("draw", "scores")
        case = Case(torch.float32 if logits else torch.bfloat16, "cpu", kernels, **sizes)
        assert choose(operator, case).name == name
        rows = [row.name for row in ROWS[operator]]
        for better in ROWS[operator][: rows.index(name)]:
            assert f"{better.name}: {better.why_not(case)}" in why[0]


# ---- nobody else asks ----

# What the rest of the package may take from the kernels: operators to call, weights to hold, and the report. None of it
# is an implementation, or tells which ones there are.
OPEN = {
    "adjust": {"Changes", "adjust", "changes", "joined"},
    "cached": {"BLOCK", "INT8", "CacheFormat", "format_of", "head_dim_of", "row_bytes", "row_of"},
    "collectives": {"library"},
    "draws": {"draw", "draw_numbers"},
    "fused": {"FusedLayers", "LayerShape"},
    "hooks": {"hooked"},
    "norms": {"rotary_table"},
    "operators": set(operators.__all__),
    "quantized": set(numbers.__all__),
    "quantized_weights": {"QuantizedFormat"},
    "quantizers": {"to_int4", "to_k4"},
    "report": set(report.__all__),
    "sampling": {"Decided", "count_not_finite", "not_finite"},
    "steps": {"Part", "Step", "StepTensors"},
    "weights": {"LANES", "PLAIN", "Blocked", "PackedWeight", "WeightFormat"},
}
# How a program finds out what a CPU or a build of torch can do, or which weight is packed how.
TAGS = r"\.dim\(\) [!=]= 4|is_mkldnn"
ASKS = rf"cpuinfo|cpu_capability|mkldnn|_is_(avx|amx|vnni)|getauxval|\bcpuid\b|LLAMA_KERNELS|llama\.kernels|{TAGS}"


def asked(source: str, package: tuple[str, ...]) -> list[str]:
    """What a module in that package asks that only the kernels should."""
    found = [line.strip() for line in source.splitlines() if re.search(ASKS, line)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = (*above, *(node.module or "").split(".")) if node.module else above
            for name in (alias.name for alias in node.names):
                open_here = len(module) == 3 and name in OPEN.get(module[2], ())
                if (*module, name)[:2] == ("llama", "kernels") and not open_here:
                    found.append(".".join((*module, name)))
    return found


def test_nothing_outside_the_kernels_asks_what_a_cpu_can_do() -> None:
    """Nor calls an implementation past the table."""
    found = {
        path.relative_to(ROOT): asks
        for path in (ROOT / "llama").rglob("*.py")
        if path.parent != ROOT / "llama" / "kernels"
        if (asks := asked(path.read_text(encoding="utf-8"), path.relative_to(ROOT).parts[:-1]))
    }
    assert found == {}


def test_a_packed_weight_is_told_by_its_format_alone() -> None:
    """Within the kernels only the formats themselves look at how a tensor lies."""
    found = {
        path.name
        for path in (ROOT / "llama" / "kernels").glob("*.py")
        if re.search(TAGS, path.read_text(encoding="utf-8"))
    }
    assert found <= {"onednn.py", "weights.py"}


@pytest.mark.parametrize(
    "source",
    [
        "from ..kernels import compiled, native",
        "from ..kernels import (\n    compiled,\n)",
        "from ..kernels.native import kernels",
        "from ..kernels.weights import native",
        "from ..kernels.norms import rms_norm",
        "from .. import kernels",
        "from llama import kernels",
        "import llama.kernels.levels",
        'importlib.import_module("llama.kernels.native")',
        "torch.backends.cpu.get_cpu_capability()",
        "torch.cpu._is_avx512_supported()",
        'open("/proc/cpuinfo")',
        "torch._C._get_mkldnn_enabled()",
        "if weight.dim() == 4: pass",
        "if tensor.is_mkldnn: pass",
    ],
)
def test_the_search_finds_every_way_to_ask(source: str) -> None:
    assert asked(source, ("llama", "engine"))


def test_the_search_allows_what_is_there_to_be_called() -> None:
    assert not asked("from ..kernels.operators import (\n    rotate,\n    pack,\n)", ("llama", "engine"))
    assert not asked("from .kernels.norms import rotary_table", ("llama",))
