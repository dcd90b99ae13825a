"""Mutants of what becomes of samples: figures, the report, servers' answers, files judged again, exports."""

from __future__ import annotations

from mutant import Mutant

_PASS_AT_K = "tests/evaluation/test_pass_at_k.py"
_REPORT = "tests/evaluation/test_report.py"
_SERVERS = "tests/evaluation/test_remote_servers.py"
_RESCORE = "tests/evaluation/test_rescore.py"
_EXPORT = "tests/evaluation/test_export.py"

MUTANTS = [
    Mutant(
        name="pass@k is that of draws with replacement",
        file="llama/evaluation/statistics.py",
        old="    return (choices - math.comb(n - passed, k)) / choices",
        new="    return 1 - ((n - passed) / n) ** k",
        tests=(f"{_PASS_AT_K}::test_it_is_the_share_of_choices_with_one_that_passes",),
    ),
    Mutant(
        name="Wilson's interval has the wrong spread",
        file="llama/evaluation/statistics.py",
        old="share * (1 - share) + spread / 4",
        new="share * (1 - share) + spread / 2",
        tests=(f"{_PASS_AT_K}::test_wilsons_interval_solves_its_equation",),
    ),
    Mutant(
        name="problems that all agree are certain",
        file="llama/evaluation/statistics.py",
        old="if single or min(values) == max(values):",
        new="if single:",
        tests=(f"{_PASS_AT_K}::test_problems_that_all_agree_are_no_certainty",),
    ),
    Mutant(
        name="a program that was not run is a failure",
        file="llama/evaluation/figures.py",
        old="        if sample.verdict.status is not Status.NOT_RUN:",
        new="        if True:",
        tests=(f"{_REPORT}::test_programs_that_were_not_run_are_no_failures",),
    ),
    Mutant(
        name="the paper's number of samples is not told",
        file="llama/evaluation/figures.py",
        old='        parts.append(f"{paper.SAMPLES} samples")',
        new="        pass",
        tests=(f"{_REPORT}::test_where_the_papers_protocol_differs_it_stands_beside_its_figure",),
    ),
    Mutant(
        name="both orders of infilling are one",
        file="llama/evaluation/figures.py",
        old="[sample for sample in samples if sample.order is order]",
        new="list(samples)",
        tests=(f"{_REPORT}::test_each_order_of_infilling_has_its_figures",),
    ),
    Mutant(
        name="nobody is warned of the sandbox that is none",
        file="llama/evaluation/report.py",
        old='    if header.sandbox == "limits":',
        new='    if header.sandbox == "none":',
        tests=(f"{_REPORT}::test_the_sandbox_is_named_and_none_is_warned_of",),
    ),
    Mutant(
        name="all samples of a problem are asked with one seed",
        file="llama/evaluation/remote.py",
        old='"seed": sample_seed(request.seed, sample),',
        new='"seed": sample_seed(request.seed, 0),',
        tests=(f"{_SERVERS}::test_a_request_says_what_the_settings_say",),
    ),
    Mutant(
        name="a server that ignores the suffix is believed",
        file="llama/evaluation/remote.py",
        old="longer <= shorter:",
        new="longer < shorter:",
        tests=(f"{_SERVERS}::test_a_server_that_ignores_the_suffix_is_found_out",),
    ),
    Mutant(
        name="a server's text runs on behind a stop",
        file="llama/evaluation/remote.py",
        old='text, finish = text[:end], "stop_sequence"',
        new='finish = "stop_sequence"',
        tests=(f"{_SERVERS}::test_five_stops_cut_the_text_whatever_the_server_makes_of_them",),
    ),
    Mutant(
        name="a file that is judged again may be written meanwhile",
        file="llama/evaluation/rescore.py",
        old="fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        new="pass",
        tests=(f"{_RESCORE}::test_no_run_can_write_meanwhile",),
    ),
    Mutant(
        name="samples of other problems are judged again",
        file="llama/evaluation/run.py",
        old="    if problems_digest(every) != header.data_sha256:",
        new="    if len(every) != header.data_problems:",
        tests=(f"{_RESCORE}::test_samples_of_other_problems_are_refused_before_anything_runs",),
    ),
    Mutant(
        name="an export is in the order of the run",
        file="llama/evaluation/export.py",
        old="sorted(found[task_id], key=lambda sample: sample.sample)",
        new="found[task_id]",
        tests=(f"{_EXPORT}::test_lines_are_in_order_and_texts_are_whole",),
    ),
    Mutant(
        name="a list for bigcode has a gap",
        file="llama/evaluation/export.py",
        old="        if len(group) != n:",
        new="        if len(group) > n:",
        tests=(f"{_EXPORT}::test_a_list_without_names_has_no_gap",),
    ),
    Mutant(
        name="a figure of the paper is another",
        file="llama/evaluation/paper.py",
        old='"34B": (47.8, 45.6,',
        new='"34B": (45.6, 47.8,',
        tests=("tests/evaluation/test_paper.py::test_the_figures_are_the_papers",),
    ),
    Mutant(
        name="the paper's PSM and SPM are each other's",
        file="llama/evaluation/paper.py",
        old="pair[0 if order is Order.PSM else 1]",
        new="pair[1 if order is Order.PSM else 0]",
        tests=("tests/evaluation/test_paper.py::test_the_figures_are_the_papers",),
    ),
    Mutant(
        name="only what passed can be an exact match",
        file="llama/evaluation/figures.py",
        old="groups[sample.task_id].append(sample.exact)",
        new="groups[sample.task_id].append(sample.exact and sample.verdict.status is Status.PASSED)",
        tests=(f"{_REPORT}::test_each_order_of_infilling_has_its_figures",),
    ),
    Mutant(
        name="nobody is told that a figure is the base model's",
        file="llama/evaluation/report.py",
        old="if published and len(header.model.variants) > 1:",
        new="if any(len(each) > 1 for each in published):",
        tests=(f"{_REPORT}::test_a_variant_that_the_shapes_do_not_tell_has_all_its_figures",),
    ),
]
