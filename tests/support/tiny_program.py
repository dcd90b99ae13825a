"""The bundled model as the programs' command lines name it."""

from __future__ import annotations

from ranks import ROOT

TINY = ROOT / "CodeLlama-tiny"
# float32, whose text does not depend on what else is in the batch.
MODEL = [str(TINY), "--device", "cpu", "--dtype", "float32", "--max-seq-len", "256"]
