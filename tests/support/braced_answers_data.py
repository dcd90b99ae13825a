"""Problems in MultiPL-E's form, of a function that multiplies each number of a list, and whole answers to them.

The answers hold what such answers hold in practice: includes and imports, a helper, a class around the function, a
main function, an example of use that prints.
"""

from __future__ import annotations

from llama.evaluation.problem import Problem

__all__ = ["BODIES", "PROBLEMS", "WHOLE"]


def _problem(prompt: str, tests: str) -> Problem:
    return Problem("scale", prompt, test=tests)


PROBLEMS = {
    "cpp": _problem(
        "#include<assert.h>\n#include<bits/stdc++.h>\n// Multiply each number\n"
        "std::vector<long> scale(std::vector<long> numbers, std::map<std::string,long> string) {\n",
        "}\nint main() {\n    auto candidate = scale;\n"
        '    assert(candidate((std::vector<long>({1, 2})), (std::map<std::string,long>({{"by", 3}})))'
        " == (std::vector<long>({3, 6})));\n}\n",
    ),
    "java": _problem(
        "import java.util.*;\nimport org.javatuples.*;\nclass Problem {\n    // Multiply each number\n"
        "    public static ArrayList<Long> scale(ArrayList<Long> numbers, HashMap<String,Long> options) {\n",
        "    }\n    public static void main(String[] args) {\n"
        '    assert(scale(new ArrayList<Long>(Arrays.asList(1L, 2L)), new HashMap<String,Long>(Map.of("by", 3L)))'
        ".equals(Arrays.asList(3L, 6L)));\n    }\n\n}\n",
    ),
    "php": _problem(
        "<?php\n// Multiply each number\nfunction scale($numbers, $options) {\n",
        "function candidate(...$args) {\n    return scale(...$args);\n}\n\nfunction test(): void {\n"
        '    if (candidate(array(1, 2), array("by" => 3)) !== array(3, 6)) { throw new Exception("Test failed!"); }\n'
        "}\n\ntest();",
    ),
    "ts": _problem(
        "//Multiply each number\nfunction scale(numbers: number[], options: {[key: string]: number}): number[] {\n",
        "declare var require: any;\nconst assert = require('node:assert');\n\n\nfunction test() {\n"
        '  let candidate = scale;\n  assert.deepEqual(candidate([1, 2], {"by": 3}),[3, 6]);\n}\n\ntest();',
    ),
    "cs": _problem(
        "using System;\nusing System.Diagnostics;\nusing System.Collections.Generic;\nusing System.Linq;\n"
        "class Problem {\n    // Multiply each number\n"
        "    public static List<long> Scale(List<long> numbers, Dictionary<string,long> options) {\n",
        "    }\n    public static void Main(string[] args) {\n"
        '    Debug.Assert(Scale((new List<long>(new long[]{1L, 2L})), (new Dictionary<string,long>(){{"by", 3L}}))'
        ".SequenceEqual(new List<long>(new long[]{3L, 6L})));\n    }\n\n}\n",
    ),
    "sh": _problem(
        "#!/bin/bash\n# Multiply each number\n#\n# $1 is a space-separated list\n# $2 is an integer\nscale() {\n",
        '}\n\ncandidate() {\n    scale "$@"\n}\n\nset -e\nrun_test() {\n'
        '    [[ $(candidate "1 2" "3") = "3 6" ]]\n}\n\nrun_test',
    ),
    "js": _problem(
        "//Multiply each number\nfunction scale(numbers, options){\n",
        "const assert = require('node:assert');\n\n\nfunction test() {\n"
        '  let candidate = scale;\n  assert.deepEqual(candidate([1, 2], {"by": 3}),[3, 6]);\n}\n\ntest();',
    ),
}

WHOLE = {
    "cpp": """\
#include <iostream>
#include <vector>
using namespace std;

struct Factor { long value; };
const long ONE = 1;

static Factor factor_of(const map<string, long> &options) {
    return Factor{options.at("by") * ONE};
}

class Solution {
public:
    vector<long> scale(const vector<long> &numbers, const map<string, long> &options) {
        vector<long> result;
        for (long number : numbers) result.push_back(number * factor_of(options).value);
        return result;
    }
};

int main() {
    Solution solution;
    cout << solution.scale({1}, {{"by", 2}})[0] << endl;
    return 1;
}
""",
    "java": """\
import java.util.*;

class Factor {
    long value;
}

public class Main {
    static Factor factorOf(Map<String, Long> options) {
        Factor factor = new Factor();
        factor.value = options.get("by");
        return factor;
    }

    public ArrayList<Long> scale(ArrayList<Long> numbers, HashMap<String, Long> options) {
        ArrayList<Long> result = new ArrayList<>();
        for (long number : numbers) result.add(number * factorOf(options).value);
        return result;
    }

    public static void main(String[] args) {
        Main solution = new Main();
        throw new RuntimeException(solution.scale(new ArrayList<>(), new HashMap<>()).toString());
    }
}
""",
    "php": """\
<?php
declare(strict_types=1);

function factor_of(array $options): int {
    return $options["by"];
}

function scale(array $numbers, array $options): array {
    return array_map(fn($number) => $number * factor_of($options), $numbers);
}

print_r(scale([1], ["by" => 2]));
?>
""",
    "ts": """\
import { Factor } from './factor';

const factorOf = (options: {[key: string]: number}): number => options["by"];

export function scale(numbers: number[], options: {[key: string]: number}): number[] {
    return numbers.map((number) => number * factorOf(options));
}

const numbers = [1], assert = 'a name of the tests';
console.log(scale(numbers, {by: 2}));
""",
    "cs": """\
using System;
using System.Collections.Generic;

namespace Solution
{
    public class Program
    {
        private static long FactorOf(Dictionary<string, long> options) => options["by"];

        public static List<long> Scale(List<long> numbers, Dictionary<string, long> options)
        {
            var result = new List<long>();
            foreach (long number in numbers) result.Add(number * FactorOf(options));
            return result;
        }

        static void Main(string[] args)
        {
            throw new Exception("an example" + new Program() + Program.Scale(null, null));
        }
    }
}
""",
    "sh": """\
#!/bin/bash
times() {
    echo $(($1 * $2))
}

function scale {
    local result=()
    for number in $1; do
        result+=("$(times "$number" "$2")")
    done
    echo "${result[*]}"
}

scale "1 2" 2
""",
    "js": """\
const factorOf = (options) => options.by;

const scale = (numbers, options) => numbers.map((number) => number * factorOf(options));

const numbers = [1];
console.log(scale(numbers, {by: 2}));
module.exports = { scale };
""",
}

# The body alone, as it stands in a function.
BODIES = {
    "cpp": '    for (long &number : numbers) number *= string["by"];\n    return numbers;\n',
    "java": '        numbers.replaceAll(number -> number * options.get("by"));\n        return numbers;\n',
    "php": '    return array_map(fn($number) => $number * $options["by"], $numbers);\n',
    "ts": '    return numbers.map((number) => number * options["by"]);\n',
    "cs": '        return numbers.Select(number => number * options["by"]).ToList();\n',
    "sh": '    local result=()\n    for number in $1; do result+=($((number * $2))); done\n    echo "${result[*]}"\n',
    "js": "    return numbers.map((number) => number * options.by);\n",
}
