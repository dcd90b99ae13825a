"""Laws of the verbs: help at once and complete, results on stdout, an error in one line on stderr, exit codes that
scripts can rely on; and an estimate that is what a built model takes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import HANGS, ROOT
from tiny_models import SHAPE, hugging_face_twin, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama, cli
from llama.cli import main
from llama.distributed.parallel import Parallel
from llama.kv_cache import KVCache
from llama.model import ModelArgs, Transformer
from llama.sizing import estimate
from llama.sizing import family as members
from llama.sizing.estimate import table
from llama.sizing.family import MEMBERS, args_of

TINY = ROOT / "CodeLlama-tiny"
VERBS = ("info", "verify", "convert", "estimate")
VOCAB = tiny_tokenizer().n_words
GIB = 1 << 30
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
# A shape that 1, 2, 4 and 8 ranks share, where ranks come to outnumber key/value heads.
ARGS = ModelArgs(dim=64, n_layers=3, n_heads=8, n_kv_heads=4, vocab_size=440, multiple_of=16, rope_theta=1e6)


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "meta", SHAPE, random_weights(SHAPE, VOCAB), tiny_model_path(), 2)


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    hugging_face_twin(SHAPE, random_weights(SHAPE, VOCAB)).bfloat16().save_pretrained(tmp_path / "hf")
    shutil.copy(tiny_model_path(), tmp_path / "hf" / "tokenizer.model")
    return tmp_path / "hf"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(list(map(str, arguments)))
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def fields(text: str) -> dict[str, str]:
    return {line[:14].strip(): line[16:] for line in text.splitlines()}


# ---- help ----------------------------------------------------------------------------------------------

HELP = """
import runpy, sys
sys.argv = ["llama", *sys.argv[1:]]
code = None
try:
    runpy.run_module("llama", run_name="__main__")
except SystemExit as stop:
    code = stop.code
heavy = {"torch", "numpy", "sentencepiece", "transformers", "fairscale"} & sys.modules.keys()
print(code, sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)], ids=str)
def test_help_is_there_at_once(verb: tuple[str, ...]) -> None:
    """Nothing heavy is imported for it, which alone takes seconds."""
    command = [sys.executable, "-c", HELP, *verb, "--help"]
    done = subprocess.run(
        command, env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.stderr == "0 []\n"
    words = {
        (): VERBS,
        ("info",): ("DIR", "--tokenizer", "codellama info"),
        ("verify",): ("DIR", "--quick", "--tokenizer", "Exit code 0", "rope_theta", "checksums"),
        ("convert",): (
            "SRC",
            "DST",
            "--to",
            "--mp",
            "--dtype",
            "--force",
            "--tokenizer",
            "codellama convert",
        ),
        ("estimate",): ("--model", "--mp", "--seq", "--batch", "--dtype", "--quant", "--table", "34b"),
    }[verb]
    for word in words:
        assert word in done.stdout, f"{word} is not in {done.stdout}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_says_what_it_does(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    out, _ = capsys.readouterr()
    for line in out[out.index("options:") :].splitlines()[1:]:
        if line.startswith("  -") and not line.startswith("  --mp N "):
            assert len(line.split()) > 2 or out[out.index(line) + len(line) + 1 :].startswith(" " * 10), line


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("explode",),
        ("info",),
        ("info", "a", "b"),
        ("verify", "--fast", "a"),
        ("convert", "a", "b"),
        ("convert", "a", "--to", "hf"),
        ("convert", "a", "b", "--to", "gguf"),
        ("convert", "a", "b", "--to", "meta", "--mp", "0"),
        ("convert", "a", "b", "--to", "meta", "--mp", "two"),
        ("convert", "a", "b", "--to", "meta", "--dtype", "int8"),
        ("estimate", "--model", "7b", "--seq", "-5"),
        ("estimate", "--model", "7b", "--batch", "1.5"),
        ("estimate", "--model", "7b", "--quant", "int2"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(run: Any, arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "usage:" in err
    assert "Traceback" not in err


# ---- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("info", "nowhere"), ("nowhere", "does not exist")),
        (("verify", "nowhere"), ("nowhere", "does not exist")),
        (("convert", "nowhere", "out", "--to", "hf"), ("nowhere", "does not exist")),
        (("estimate", "--model", "nowhere"), ("nowhere", "7b, 13b, 34b, 70b")),
        (("estimate", "--model", "8b"), ("'8b'", "7b, 13b, 34b, 70b")),
        (("estimate",), ("--model", "--table")),
        (("estimate", "--model", "7b", "--mp", "3"), ("size 3", "sizes that work: 1, 2, 4, 8, 16")),
        (("info", "meta", "--tokenizer", "nowhere.model"), ("nowhere.model",)),
        (("convert", "meta", "out", "--to", "hf", "--mp", "2"), ("--mp",)),
        (("convert", "meta", "out", "--to", "meta", "--mp", "3"), ("3 shards", "use one of 1, 2")),
        (("convert", "meta", "meta", "--to", "meta"), ("meta",)),
        (("convert", "meta", "there", "--to", "meta"), ("there exists", "--force")),
        (("info", "file"), ("is a file",)),
        (("info", "empty"), ("empty",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_named_error_is_one_line_and_1(
    run: Any, meta: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(meta.parent)
    for name in ("there", "empty"):
        Path(name).mkdir()
    Path("file").write_text("x")
    before = sorted(path.name for path in meta.parent.iterdir())
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err, f"{word!r} is not in {err!r}"
    assert sorted(path.name for path in meta.parent.iterdir()) == before


def test_errors_of_other_kinds_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug must be seen as one."""

    def broken(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_info", broken)
    with pytest.raises(ZeroDivisionError):
        main(["info", "x"])


def test_the_process_ends_with_the_code_and_without_a_traceback() -> None:
    command = [sys.executable, "-m", "llama", "info", "nowhere"]
    done = subprocess.run(
        command, env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: .*nowhere.*\n", done.stderr)


# ---- info, verify, convert -------------------------------------------------------------------------------


def test_info_of_the_bundled_model(run: Any) -> None:
    code, out, err = run("info", TINY)
    assert (code, err) == (0, "")
    found = fields(out)
    count = sum(
        value.numel() for value in torch.load(TINY / "consolidated.00.pth", weights_only=True).values()
    )
    assert found["layout"].startswith("Meta, 1 weight file, ")
    assert found["parameters"] == f"{count / 1e6:.3g}M in bfloat16"
    assert found["shape"] == "dim 256, 5 layers, 8 heads, 4 key/value heads, feed-forward 512"
    # Its card says 1,024; no other file does.
    assert found["context"].startswith("not known: rope_theta 1,000,000")
    assert (found["infilling"], found["chat format"], found["vocabulary"]) == (
        "yes",
        "[INST]",
        "4,096 pieces",
    )
    for size in (1, 2, 4, 8):
        assert "MiB of weights per rank" in found[f"memory, MP {size}"]
    assert found["memory, MP 1"].startswith(f"{2 * count / (1 << 20):.1f} MiB")
    assert "no member" in found["member"]


def test_info_of_a_hugging_face_folder(run: Any, hf: Path) -> None:
    code, out, _ = run("info", hf)
    found = fields(out)
    assert code == 0
    assert found["layout"].startswith("Hugging Face, 1 weight file")
    assert found["parameters"].endswith("in bfloat16")
    assert found["memory, MP 8"] == "does not fit its heads"  # 8 does not divide its vocabulary
    shutil.copy(tiny_model_path("step"), hf / "tokenizer.model")
    assert "run verify" in fields(run("info", hf)[1])["vocabulary"]


def test_info_reads_no_weights(run: Any, meta: Path) -> None:
    """The values in the shards are never looked at, but for the norms, of which each shard has a copy."""
    path = meta / "consolidated.00.pth"
    tensors = torch.load(path, weights_only=True)
    tensors["output.weight"].fill_(float("nan"))
    torch.save(tensors, path)
    assert run("info", meta)[0] == 0


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_info_names_the_member(member: Any) -> None:
    from llama.checkpoint.info import describe, guess

    args = args_of(member)
    assert guess(args, None).startswith(f"Code Llama {member.name}")
    args.rope_theta = 1e4
    if member.name == "70B":
        assert "Instruct" in guess(args, tiny_tokenizer("step"))
        assert "or Llama 2 70B" in guess(args, tiny_tokenizer("plain"))
    else:
        assert "rope_theta" in guess(args, None)
    args = args_of(member)
    if member.name in ("7B", "13B"):
        assert "base or Instruct" in guess(args, None)
        args.vocab_size = 32000
        assert "Python" in guess(args, None)

    class Opened:
        layout, files, shards, dtype = "Meta", (), member.shards, torch.bfloat16

    Opened.args = args  # type: ignore[attr-defined]
    short = "4,096 tokens" if member.name == "70B" else "not known"
    for theta, context in ((1e6, "16,384 tokens"), (1e4, short), (5e5, "not known")):
        args.rope_theta = theta
        found = dict(describe(Opened(), None))  # type: ignore[arg-type]
        assert found["context"].startswith(context)
    sizes = {"7B": "6.74B", "13B": "13B", "34B": "33.7B", "70B": "69B"}
    assert found["parameters"] == f"{sizes[member.name]} in bfloat16"


def test_verify_prints_a_table(run: Any, meta: Path) -> None:
    code, out, err = run("verify", meta)
    assert (code, err) == (0, "")
    rows = [(line[:4], line[6:21].strip()) for line in out.splitlines()]
    assert [name for _, name in rows][:4] == ["checksums", "tensors", "shard agreement", "values"]
    assert {status for status, _ in rows} == {"pass", "skip"}
    assert all(line[4:6] == "  " and line[21:23] == "  " for line in out.splitlines())
    (meta / "tokenizer.model").unlink()
    code, out, err = run("verify", meta, "--quick")
    assert code == 1
    assert err == "error: 1 of the checks failed\n"
    assert "tokenizer.model is missing" in out


def test_convert_and_back_by_the_command(run: Any, tmp_path: Path) -> None:
    code, out, err = run("convert", TINY, tmp_path / "hf", "--to", "hf")
    assert (code, err) == (0, "")
    assert f"bfloat16 to {tmp_path / 'hf'}:" in out
    names = [line.strip() for line in out.splitlines()[1:]]
    assert names == sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    code, out, _ = run("convert", tmp_path / "hf", tmp_path / "meta", "--to", "meta", "--mp", 4)
    assert code == 0
    assert run("convert", tmp_path / "hf", tmp_path / "meta", "--to", "meta")[0] == 1
    assert run("convert", tmp_path / "hf", tmp_path / "meta", "--to", "meta", "--force")[0] == 0
    before = torch.load(TINY / "consolidated.00.pth", weights_only=True)
    after = torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True)
    assert after.keys() == before.keys() - {"rope.freqs"}
    for name, value in after.items():
        assert torch.equal(value, before[name]), name
    assert run("verify", tmp_path / "meta")[0] == run("verify", tmp_path / "hf")[0] == 0


def test_names_of_folders_that_are_no_utf_8(run: Any, hf: Path, tmp_path: Path) -> None:
    """Both layouts are read from them."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        hf.rename(folder)
    except OSError:
        pytest.skip("this file system has no such names")
    code, out, err = run("convert", folder, folder.with_suffix(".meta"), "--to", "meta")
    assert (code, err) == (0, "")
    assert "caf\\xe9.meta" in out
    code, _, err = run("info", folder.with_suffix(".meta"))
    assert (code, err) == (0, "")


def test_convert_with_another_dtype_and_tokenizer(run: Any, meta: Path, tmp_path: Path) -> None:
    (meta / "tokenizer.model").rename(tmp_path / "t.model")
    more = ("--dtype", "float16", "--tokenizer", tmp_path / "t.model")
    assert run("convert", meta, tmp_path / "out", "--to", "hf")[0] == 1
    assert run("convert", meta, tmp_path / "out", "--to", "hf", *more)[0] == 0
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in found.values()} == {torch.float16}


def test_hugging_face_weights_of_a_member_go_into_the_shards_that_meta_ships(
    run: Any, hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("convert", hf, tmp_path / "one", "--to", "meta")[0] == 0
    assert len(list((tmp_path / "one").glob("*.pth"))) == 1
    member = members.Member("13B", 64, 2, 8, 2, 176, 2, VOCAB)
    monkeypatch.setattr(members, "MEMBERS", (member,))
    assert run("convert", hf, tmp_path / "two", "--to", "meta")[0] == 0
    assert len(list((tmp_path / "two").glob("*.pth"))) == 2


# ---- a reader that goes away, signals -----------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "takes"), [("verify", True), ("info", False)])
def test_a_reader_that_goes_away_ends_it_without_a_word(verb: str, takes: bool) -> None:
    """As with `| head -1`, and with a reader that takes nothing at all. The code is that of any program in a pipe."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llama", verb, str(TINY)],
        env=ENV,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    if takes:
        assert process.stdout.readline().startswith("pass")
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(HANGS) == 141
    assert err == ""


def test_the_handler_of_sigterm_is_put_back(run: Any) -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    run("info", TINY)
    run("info", "nowhere")
    assert signal.getsignal(signal.SIGTERM) is before


# ---- estimate ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_weights_and_cache_are_those_of_a_built_model(size: int, dtype: torch.dtype) -> None:
    """Of every rank: tensors that are really there, and a cache that is really reserved."""
    found = estimate.estimate(ARGS, size, 100, 3, dtype)
    for rank in range(size):
        with torch.device("meta"):
            model = Transformer(ARGS, parallel=Parallel(rank, size)).to(dtype)
        assert found.weights == sum(value.nbytes for value in model.state_dict().values())
        caches = []
        for _ in range(3):
            cpu = torch.device("cpu")
            caches.append(KVCache(ARGS.n_layers, model.local_kv_heads, ARGS.head_dim, dtype, cpu, 100))
            caches[-1].reserve(100)
        assert found.cache == sum(cache.nbytes for cache in caches)
    assert found.total == found.weights + found.cache + found.work
    assert found.per_token * 300 == found.cache


def test_weights_are_those_that_are_loaded(meta: Path, run: Any) -> None:
    with Llama.build(meta, None, 64, 2, 1, device="cpu", dtype="float32") as llama:
        loaded = sum(value.nbytes for value in llama.model.state_dict().values())
        args = llama.model.params
    assert estimate.estimate(args, 1, 1, 1, torch.float32).weights == loaded


# From Meta's own shards, and keys and values of one position: layers x 2 x kv heads x 128 x 2 bytes.
@pytest.mark.parametrize(
    ("name", "gb", "mib"),
    [("7b", 13.48, 0.5), ("13B", 26.03, 0.78), ("34b", 67.49, 0.19), ("70b", 137.95, 0.31)],
)
def test_the_family_by_name(run: Any, name: str, gb: float, mib: float) -> None:
    code, out, err = run("estimate", "--model", name, "--seq", 1024, "--batch", 1)
    assert (code, err) == (0, "")
    numbers = {line.split("  ")[1]: float(line[12:24].split()[0]) for line in out.splitlines()[1:5]}
    assert numbers["weights"] == pytest.approx(gb * 1e9 / GIB, abs=0.02)
    assert numbers["cache"] == pytest.approx(mib, abs=0.01)
    parts = sum(numbers[name] for name in ("weights", "cache", "work space"))
    assert numbers["total"] == pytest.approx(parts, abs=0.02)
    assert out.startswith(f"{name} on 1 rank, GiB per rank:\n")


def test_ranks_and_dtype_change_what_a_rank_holds(run: Any) -> None:
    def weights(*more: object) -> float:
        code, out, _ = run("estimate", "--model", "34b", *more)
        assert code == 0
        return float(out.splitlines()[1].split()[1])

    whole = weights()
    assert weights("--mp", 4) == pytest.approx(whole / 4, rel=0.01)
    assert weights("--dtype", "float32") == pytest.approx(2 * whole, rel=0.01)
    # Linear layers of 8 or 4 bits, and scales; the embedding stays as it is.
    assert 0.5 * whole < weights("--quant", "int8") < 0.52 * whole
    assert 0.25 * whole < weights("--quant", "int4") < 0.28 * whole


def test_quantized_weights_counted_by_hand() -> None:
    """int8: a byte for each weight, two for each row. int4: half a byte, two for 128 of them."""
    linear, plain = 0, 0
    for name, value in Transformer(ARGS, parallel=Parallel()).state_dict().items():
        if value.dim() == 1 or name.startswith("tok_embeddings"):
            plain += 2 * value.numel()
        else:
            linear += 1
            plain += value.numel() + 2 * len(value)
    assert linear == 7 * ARGS.n_layers + 1
    assert estimate.estimate(ARGS, 1, 1, 1, torch.bfloat16, "int8").weights == plain


@settings(max_examples=200, deadline=None)
@given(limit=st.integers(0, 1 << 39))
def test_the_largest_is_the_largest_that_fits(limit: int) -> None:
    assert estimate.largest(lambda n: n <= limit) == limit


@settings(max_examples=100, deadline=None)
@given(
    size=st.sampled_from([1, 2, 4, 8]),
    seq=st.integers(1, 100_000),
    batch=st.integers(1, 64),
)
def test_more_tokens_and_sequences_never_take_less(size: int, seq: int, batch: int) -> None:
    """What the search for the largest rests on."""
    for args in (ARGS, args_of(MEMBERS[0]), args_of(MEMBERS[3])):
        found = estimate.estimate(args, size, seq, batch, torch.bfloat16)
        longer = estimate.estimate(args, size, seq + 1, batch, torch.bfloat16)
        more = estimate.estimate(args, size, seq, batch + 1, torch.bfloat16)
        assert found.total == found.weights + found.cache + found.work
        assert found.total < longer.total
        assert found.total < more.total


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (1 << 20, ["does not fit", "not even with an empty cache"]),
        (20 * GIB, ["20.00 GiB free", "does not fit; what fits"]),
        (100 * GIB, ["100.00 GiB free", ": fits; what fits"]),
        (None, ["does not say"]),
    ],
)
def test_the_verdict_for_the_devices_present(
    run: Any, monkeypatch: pytest.MonkeyPatch, free: int | None, words: list[str]
) -> None:
    monkeypatch.setattr(estimate, "devices", lambda: [("cpu", free)])
    code, out, _ = run("estimate", "--model", "7b", "--seq", 16384, "--batch", 2)
    assert code == 0
    for word in words:
        assert word in out.splitlines()[-1], out
    if free == 100 * GIB:
        each, count = re.findall(r"what fits: 2 x ([\d,]+) tokens, or ([\d,]+) x 16,384", out)[0]
        # 0.5 MiB for each token, beside 12.55 GiB of weights and the work space, in nine tenths of the memory.
        assert 2 * int(each.replace(",", "")) * 0.5 / 1024 == pytest.approx(90 - 12.55, abs=0.5)
        assert int(count) == pytest.approx((90 - 12.55) / 8, abs=1)


def test_ranks_share_the_memory_of_a_cpu_and_have_gpus_of_their_own(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "devices", lambda: [("cpu", 64 * GIB)])
    assert "16.00 GiB free per rank" in run("estimate", "--model", "7b", "--mp", 4)[1]
    monkeypatch.setattr(estimate, "devices", lambda: [("cuda:0 (X)", 64 * GIB), ("cuda:1 (X)", 32 * GIB)])
    out = run("estimate", "--model", "7b", "--mp", 4)[1]
    assert "cuda:0 (X): 64.00 GiB" in out
    assert "cuda:1 (X): 32.00 GiB" in out
    assert "4 ranks need as many GPUs; this machine has 2" in out


def test_estimate_of_a_folder(run: Any, hf: Path) -> None:
    """As stored, unless told otherwise."""
    code, out, _ = run("estimate", "--model", hf, "--seq", 64)
    assert code == 0
    assert "bfloat16" in out
    assert "float32" in run("estimate", "--model", hf, "--dtype", "float32")[1]


def test_a_folder_whose_name_is_a_members(run: Any, meta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of the family counts; the folder is meant with a slash."""
    meta.rename(meta.parent / "7b")
    monkeypatch.chdir(meta.parent)
    assert "12.55" in run("estimate", "--model", "7b")[1]
    assert "12.55" not in run("estimate", "--model", "./7b")[1]


def test_table_is_printed_alone(run: Any) -> None:
    code, out, _ = run("estimate", "--table")
    assert code == 0
    assert out == table() + "\n"


def test_the_table_says_what_estimate_says() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table().splitlines()]
    assert rows[0][1:] == ["7B", "13B", "34B", "70B"]
    by_label = {row[0].split(",")[0].split(" of")[0]: row[1:] for row in rows[2:]}
    for column, member in enumerate(MEMBERS):
        for place, size in enumerate((1, 2, 4, 8)):
            found = estimate.estimate(args_of(member), size, 16384, 1, torch.bfloat16)
            for label, value in (
                ("weights", found.weights),
                ("KV cache", found.cache),
                ("work space", found.work),
            ):
                cells = by_label[label][column].split(" / ")
                assert float(cells[place]) == pytest.approx(value / GIB, abs=0.0501), (
                    label,
                    member.name,
                    size,
                )


def test_both_commands_are_one() -> None:
    """`codellama` is installed as the same function."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'codellama = "llama.cli:main"' in project
