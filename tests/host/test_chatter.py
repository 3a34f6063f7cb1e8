"""What libraries print, told apart from what the run prints."""

import subprocess
import sys

SCRIPT = """
import os, sys
from rljax.host.chatter import Chatter
chatter = Chatter()
os.write(1, b"[Gloo] Rank 0 is connected to 1 peer ranks.\\nfrom C++\\n")
os.write(2, b"an error in C++\\n")
print("of the run")
print("an error of the run", file=sys.stderr)
{then}
"""


def printed(then: str) -> tuple[str, list[str]]:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(then=then)], capture_output=True, text=True, check=True
    )
    return run.stdout, run.stderr.splitlines()


def test_standard_output_is_the_runs_alone_and_the_rest_comes_later_but_for_greetings():
    out, error = printed("chatter.restore()")
    assert out == "of the run\n"
    assert error == ["an error of the run", "from C++", "an error in C++"]


def test_what_was_printed_last_can_be_dropped():
    _, error = printed("assert chatter.take().endswith(b'in C++\\n'); chatter.restore()")
    assert error == ["an error of the run"]


def test_it_is_passed_on_while_the_run_goes_on():
    _, error = printed(
        "import time; time.sleep(3); taken = chatter.take(); chatter.restore(); assert not taken"
    )
    assert error == ["an error of the run", "from C++", "an error in C++"]


def test_half_a_greeting_waits_for_its_other_half():
    _, error = printed(
        "import time; os.write(1, b'[Gloo] Rank 0 is connected to peer '); time.sleep(2.5); "
        "os.write(1, b'1\\n'); chatter.restore()"
    )
    assert error == ["an error of the run", "from C++", "an error in C++"]


def test_the_end_of_a_greeting_whose_beginning_was_dropped_is_no_line():
    _, error = printed("chatter.take(); os.write(1, b'\\n'); chatter.restore()")
    assert error == ["an error of the run"]
