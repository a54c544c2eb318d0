"""Judge stored programs with evalplus itself. Run by the Python of an environment that has it, not by ours.

    PYTHON tests/evalplus_judge.py < request.json > verdicts.json

The request holds ``dataset`` (humaneval or mbpp), ``problems`` (rows of EvalPlus' data), ``samples`` (pairs of an id
and a program), ``base_only``, ``workers`` and ``seconds``, the least clock time a call gets. The answer holds
``verdicts``, one pair of booleans a sample (base tests, and base with plus), and ``cpu_seconds`` of the judging, this
process and its children, without what the references cost.
"""

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout

from evalplus.data.mbpp import mbpp_deserialize_inputs
from evalplus.eval import PASS
from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
from evalplus.evaluate import check_correctness
from evalplus.gen.util import trusted_exec


def expected(problem, dataset, base_only):
    """Return what evalplus computes of a reference, as its evaluator does."""
    not_none = dataset == "mbpp" and problem["entry_point"] in MBPP_OUTPUT_NOT_NONE_TASKS
    program = problem["prompt"] + problem["canonical_solution"]
    found = {}
    for name in ("base",) if base_only else ("base", "plus"):
        found[name], found[f"{name}_time"] = trusted_exec(
            program, problem[f"{name}_input"], problem["entry_point"], record_time=True, output_not_none=not_none
        )
    return found


def judge(dataset, problems, samples, base_only, workers, seconds):
    """Return evalplus' verdicts on the samples, and their processor time."""
    for problem in problems:
        problem["task_id"] = problem["id"].replace("mbpp", "Mbpp")
        if dataset == "mbpp":
            for field in ("base_input", "plus_input"):
                problem[field] = mbpp_deserialize_inputs(problem["task_id"], problem[field])
    known = {problem["id"]: (problem, expected(problem, dataset, base_only)) for problem in problems}
    began = used()
    with ProcessPoolExecutor(max_workers=workers) as pool:  # as in `evalplus.evaluate.evaluate`
        futures = [
            pool.submit(check_correctness, dataset, 0, problem, program, outputs, base_only, True, str(number), seconds)
            for number, (key, program) in enumerate(samples)
            for problem, outputs in [known[key]]
        ]
        results = [future.result() for future in futures]
    verdicts = []
    for result in results:
        base = result["base"][0] == PASS
        verdicts.append([base, base and (base_only or result["plus"][0] == PASS)])
    return {"verdicts": verdicts, "cpu_seconds": used() - began}


def used():
    """Return the processor time of this process and of all its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        answer = judge(**json.load(sys.stdin))
    json.dump(answer, sys.stdout)
