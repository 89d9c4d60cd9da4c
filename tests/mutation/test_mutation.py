from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.campaign import stages_of
from tests.mutation.mutants import find_mutants

ROOT = Path(__file__).parents[2]

SOURCE = '''
"""A docstring with a number, 5."""
from typing import Literal
__all__ = ["f"]
Kind = Literal["a", "b"]
LIMIT = 8

def f(a: int, b: Literal["x"] = "x") -> bool:
    """Another one."""
    if a < LIMIT and not b:
        raise ValueError("too small, by 3")
    total = a
    total += 2.5
    _log.warning("a text", 7)
    return total == a
'''
EXPECTED = [
    "<module>: 8 -> 7",
    "<module>: 8 -> 9",
    "f: 'x' -> 'Xx'",
    "f: a < LIMIT and (not b) -> a < LIMIT or not b",
    "f: a < LIMIT and (not b) -> not (a < LIMIT and (not b))",
    "f: a < LIMIT -> a <= LIMIT",
    "f: not b -> b",
    "f: raise ValueError('too small, by 3') -> pass",
    "f: total = a -> pass",
    "f: total += 2.5 -> pass",
    "f: total += 2.5 -> total -= 2.5",
    "f: 2.5 -> 5.0",
    "f: _log.warning('a text', 7) -> pass",
    "f: total == a -> total != a",
]


def test_the_mutants_of_a_file_change_its_rules_and_not_its_texts(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    mutants = find_mutants(tmp_path, "a.py")
    assert sorted(f"{each.where}: {each.before} -> {each.after}" for each in mutants) == sorted(EXPECTED)
    for each in mutants:
        mutated = each.apply(SOURCE.encode()).decode()
        compile(mutated, "a.py", "exec")
        (line,) = [
            number
            for number, (old, new) in enumerate(zip(SOURCE.split("\n"), mutated.split("\n"), strict=True), 1)
            if old != new
        ]
        assert line == each.line
        assert each.text == SOURCE.split("\n")[line - 1].strip()


def test_the_tests_of_a_file_are_those_named_after_it_and_then_its_package():
    own, others = stages_of(ROOT, "eventsh/protocol/codec.py")
    assert "tests/protocol/test_codec.py" in own.files
    assert "tests/protocol/test_codec_subclasses.py" in own.files
    assert "tests/protocol/test_frame.py" in others.files
    assert not set(own.files) & set(others.files)
    assert others.timed == tuple(sorted(own.files + others.files))
    (alone,) = stages_of(ROOT, "eventsh/address.py")
    assert alone.files == ("tests/test_address.py",)


RULES = """
def is_adult(age):
    return age >= 18


def count_down(number):
    while number > 0:
        number -= 1
    return number
"""
TESTS = """
from eventsh.shop.rules import count_down, is_adult


def test_the_age():
    assert {sample}
    assert not {other}


def test_the_end():
    assert count_down(3) == 0
"""


@pytest.fixture
def shop(tmp_path):
    """A tree with a package and its tests; `write` gives the tests."""
    root = tmp_path / "shop"
    (root / "eventsh" / "shop").mkdir(parents=True)
    (root / "tests" / "shop").mkdir(parents=True)
    (root / "eventsh" / "shop" / "rules.py").write_text(RULES)

    def run(sample: str, other: str, *arguments: str) -> tuple[int, str]:
        (root / "tests" / "shop" / "test_rules.py").write_text(TESTS.format(sample=sample, other=other))
        done = subprocess.run(
            [sys.executable, "-m", "tests.mutation", "--root", str(root), "--package", "shop", "--least-timeout", "2",
             "--equivalent", str(tmp_path / "equivalent.toml"), *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert (root / "eventsh" / "shop" / "rules.py").read_text() == RULES
        return done.returncode, done.stdout + done.stderr

    return run


def test_tests_without_a_hole_kill_every_mutant(shop):
    status, output = shop("is_adult(18)", "is_adult(17)", "--match", "is_adult")
    assert "seed 1: 4 mutants, 4 killed, 0 timeouts, 0 survived: 100.0%" in output
    assert status == 0


def test_the_survivors_of_tests_with_a_hole_are_printed(shop, tmp_path):
    status, output = shop("is_adult(50)", "is_adult(5)", "--match", "is_adult")
    assert "4 mutants, 1 killed, 0 timeouts, 3 survived: 25.0%" in output
    assert "eventsh/shop/rules.py:3 in is_adult: return age >= 18\n  - age >= 18\n  + age > 18" in output
    assert status == 1
    row = '[[equivalent]]\nfile = "eventsh/shop/rules.py"\nwhere = "is_adult"\nbefore = "18"\nreason = "none"\n'
    (tmp_path / "equivalent.toml").write_text(row)
    status, output = shop("is_adult(50)", "is_adult(5)", "--match", "is_adult", "--least", "0.5")
    assert "2 mutants, 1 killed, 0 timeouts, 1 survived: 50.0%" in output
    assert status == 0


def test_a_mutant_that_hangs_is_killed(shop):
    status, output = shop("is_adult(18)", "is_adult(17)", "--match", "number -= 1 -> pass")
    # On a busy machine the limit of the whole run ends it before that of the test does.
    assert "1 mutants, " in output
    assert " 0 survived: 100.0%" in output
    assert status == 0


def test_tests_that_fail_without_a_mutant_end_the_run(shop):
    status, output = shop("is_adult(5)", "is_adult(5)")
    assert "the tests fail without a mutant: tests/shop/test_rules.py" in output
    assert status == 1


def test_a_seed_draws_the_same_mutants_and_runs_none_with_list(shop):
    first, second, other = (
        shop("is_adult(18)", "is_adult(17)", "--list", "--count", "3", "--seed", seed)[1] for seed in ("1", "1", "2")
    )
    assert first == second != other
    assert len(first.splitlines()) == 3
