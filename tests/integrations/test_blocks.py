"""The code of README's section about servers: each block is Python, and takes names that are there."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = README.partition("## In a web application\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


def test_there_is_a_block_for_each_server():
    named = {name for block in BLOCKS for name in re.findall(r"eventsh\.integrations\.(\w+)", block)}
    assert named == {"asgi", "celery", "gunicorn", "rq", "uwsgi"}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_takes_names_of_eventsh_that_are_there(block: str):
    # Some are the inside of a coroutine.
    tree = compile(block, "README.md", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("eventsh"):
            module = importlib.import_module(f"{node.module}")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
