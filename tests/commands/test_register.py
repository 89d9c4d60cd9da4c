"""The book of what a shell registered, with a broker that does as it is told."""

from __future__ import annotations

from typing import Any

from eventsh.commands.register import Book
from eventsh.core.questions import ADD_SCRIPT
from eventsh.errors import EventError


class Broker:
    """Keeps the names of scripts. `meanwhile` is called at every question, as another thread may be at work."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.meanwhile: Any = lambda: None

    def ask(self, what: str, arguments: dict[str, Any]) -> Any:
        name = arguments["name"]
        if what == ADD_SCRIPT:
            if name in self.names:
                raise EventError(f"there is a script {name} already")
            self.names.append(name)
        else:
            if name not in self.names:
                raise EventError(f"there is no script {name}")
            self.names.remove(name)
        self.meanwhile()
        return {"workers": [{"worker_id": 0, "error": None, "data": {"error": None, "handlers": 1}}]}


def book_of(broker: Broker, count: int) -> Book:
    book = Book(7, broker.ask, lambda what, arguments: {"error": None, "handlers": 1})
    for _ in range(count):
        book.register(["a"], " 1", workers=())
    return book


def test_what_is_taken_back_while_all_is_registered_again_is_not_there_afterwards():
    broker = Broker()
    book = book_of(broker, 3)
    broker.names.clear()

    def meanwhile() -> None:
        broker.meanwhile = lambda: None
        book.unregister(1)
        book.unregister(2)
        book.register(["b"], " 2", workers=())

    broker.meanwhile = meanwhile
    assert book.register_again() == []
    assert [each.number for each in book.all] == [3, 4]
    assert sorted(broker.names) == ["7.3", "7.4"]


def test_a_name_that_an_earlier_process_of_this_number_kept_is_passed_over():
    broker = Broker()
    broker.names += ["7.1", "7.2"]
    book = book_of(broker, 1)
    assert [each.number for each in book.all] == [3]
    assert broker.names == ["7.1", "7.2", "7.3"]


def test_what_another_shell_took_back_by_its_name_is_gone_here_too():
    broker = Broker()
    book, other = book_of(broker, 2), Book(8, broker.ask, lambda what, arguments: {})
    assert other.unregister_name("7.1") == {}
    assert book.unregister(1) == {}
    assert book.unregister_name("7.2") == {}
    assert (book.all, broker.names) == ([], [])
