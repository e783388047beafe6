"""A process that compares answers: lines of JSON [gold, answer, tolerances or none] in, a verdict a line out.

sympy may think for ever, take all memory or crash; whoever asks ends this process then, and starts another.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from fractions import Fraction

MEMORY = 4 << 30


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # Answers of many digits are compared, and never printed.
    sys.set_int_max_str_digits(0)
    from skytrain.prep.grade.latex import clean
    from skytrain.prep.grade.near import near
    from skytrain.prep.grade.same import same
    from skytrain.prep.grade.symbols import Unparsed

    # sympy and its parser print, and a line of theirs would be read as a verdict.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        gold, answer, *tolerances = json.loads(line)
        try:
            gold, answer = clean(gold), clean(answer)
            good = near(gold, answer, list(map(Fraction, tolerances))) if tolerances else same(gold, answer)
            verdict = "correct" if good else "wrong"
        except Unparsed:
            verdict = "gold_unparseable"
        except (Exception, RecursionError) as error:
            print(f"{type(error).__name__}: {error}"[:500], file=sys.stderr)
            verdict = "crash"
        print(verdict, file=answers, flush=True)


if __name__ == "__main__":
    main()
