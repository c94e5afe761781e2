"""Where a home has its metrics served, and which file may change that."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from turnout.config.settings import Address, Scrape, ServiceRequest, Settings, parse_address
from turnout.errors import AddressInUseError, ConfigError, TurnoutError, UsageError
from turnout.state import metrics_address
from turnout.state.home import Home
from turnout.state.metrics_address import bind_problem, check_scrape, read_scrape, to_write, write_scrape

HERE = Scrape(listen=Address("127.0.0.1", 9477), source="/etc/a.toml")
SETTINGS = Settings(name="s", listen=(parse_address("127.0.0.1:47777"),))


def wanted(scrape: Scrape | None) -> ServiceRequest:
    return ServiceRequest(settings=SETTINGS, scrape=scrape)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_a_home_without_the_file_serves_none_and_what_was_written_is_read_back(home: Home) -> None:
    assert read_scrape(home) == Scrape()
    write_scrape(home, HERE)
    assert read_scrape(home) == HERE


def test_a_verb_without_a_word_about_metrics_or_with_the_same_word_writes_nothing(home: Home) -> None:
    write_scrape(home, HERE)
    assert to_write(home, wanted(None)) is None
    assert to_write(home, wanted(HERE)) is None


def test_a_file_takes_back_what_it_said_itself_and_no_more(home: Home) -> None:
    write_scrape(home, HERE)
    silent = Scrape(source="/etc/a.toml")
    assert to_write(home, wanted(silent)) == silent
    assert to_write(home, wanted(Scrape(source="/etc/b.toml"))) is None
    assert to_write(home, wanted(Scrape())) == Scrape(), "none by flag turns them off, whoever turned them on"


def test_where_nothing_was_written_a_file_without_metrics_writes_nothing(home: Home) -> None:
    assert to_write(home, wanted(Scrape(source="/etc/a.toml"))) is None


def test_a_damaged_file_is_replaced_by_an_address_and_is_an_error_for_a_file_without_one(home: Home) -> None:
    home.metrics.write_text("{")
    assert to_write(home, wanted(HERE)) == HERE
    with pytest.raises(ConfigError):
        to_write(home, wanted(Scrape(source="/etc/a.toml")))


def test_metrics_cannot_be_served_where_clients_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_address, "require", lambda: None)
    with pytest.raises(UsageError, match="where clients of s come"):
        check_scrape(wanted(None), Scrape(listen=Address("0.0.0.0", 47777)), serves=None)


def test_an_address_that_another_process_has_is_refused_unless_our_router_serves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_address, "require", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(AddressInUseError, match=f"the metrics address {address} is in use by pid "):
            check_scrape(wanted(None), Scrape(listen=address), serves=None)
        check_scrape(wanted(None), Scrape(listen=address), serves=str(address))


def test_another_fault_of_bind_is_told_as_the_system_words_it() -> None:
    problem = bind_problem(Address("10.9.8.7", 1), 99)
    assert type(problem) is TurnoutError
    assert problem.message == "cannot serve metrics on 10.9.8.7:1: Cannot assign requested address"
