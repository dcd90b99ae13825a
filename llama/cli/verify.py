"""`codellama verify`: checks a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..printable import tell
from .arguments import add_adapter, add_tokenizer, path
from .terminal import out

SUMMARY = "check that a checkpoint is complete and sound"
DESCRIPTION = """
    Check a checkpoint: print a table of pass, fail or skip, and why. Exit code 0 if nothing failed, else 1.

      checksums        md5 of every file in checklist.chk
      tensors          every key, shape and dtype
      adapter          with --adapter: fits the model, and is plain LoRA
      shard agreement  weights that every shard holds are the same in all
      values           all are finite, no tensor is all zero
      tokenizer        as many pieces as the embedding has rows
      infilling ids    a published prompt has its published ids
      rope_theta       the value that this model of the family was trained with

      codellama verify CodeLlama-7b/
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=path, metavar="DIR", help="a folder in Meta's or Hugging Face's layout, or a GGUF file"
    )
    parser.add_argument(
        "--quick", action="store_true", help="skip checksums and values, which read every byte"
    )
    add_tokenizer(parser)
    add_adapter(parser)


def run(options: argparse.Namespace) -> int:
    from ..checkpoint.opening import check_path
    from ..checkpoint.progress import Progress
    from ..checkpoint.verify import verify

    folder = options.folder
    check_path(folder)
    adapter = [] if options.adapter is None else [*options.adapter.glob("adapter_model.*")]
    progress = Progress(_bytes_to_read(folder, adapter), "verifying")
    failed = 0
    findings = verify(
        folder,
        tokenizer_path=options.tokenizer,
        quick=options.quick,
        adapter=options.adapter,
        progress=progress,
    )
    for finding in findings:
        failed += finding.status == "fail"
        out(f"{finding.status:<4}  {finding.name:<15}  {finding.why}")
    if failed:
        tell(f"error: {failed} of the checks failed")
    return 1 if failed else 0


def _bytes_to_read(folder: Path, adapter: list[Path]) -> int:
    """Weights are read for their values, and again for checksums: the checklist's or the file's own."""
    if folder.is_file():
        return sum(path.stat().st_size for path in (folder, *adapter))
    weights = [path for kind in ("pth", "safetensors", "bin", "gguf") for path in folder.glob(f"*.{kind}")]
    has_checklist = (folder / "checklist.chk").is_file()
    twice = [path for path in weights if has_checklist or path.suffix in (".pth", ".bin")]
    return sum(path.stat().st_size for path in [*weights, *twice, *adapter] if path.is_file())
