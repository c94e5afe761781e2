"""One service under its lock: who gets it, when it goes, and what is recorded, without keeper or router."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from turnout.config.settings import Address, Definition, ServiceRequest, Settings
from turnout.errors import StateUnwritableError, UsageError
from turnout.lifecycle.progress import Progress
from turnout.lifecycle.session import Session
from turnout.lifecycle.verb_request import VerbRequest
from turnout.state.builds import Build
from turnout.state.definition import definition_of
from turnout.state.home import Home
from turnout.state.lifecycle_lock import is_free

SETTINGS = Settings(name="t", listen=(Address("127.0.0.1", 1),))
HERE = Definition(file="/srv/a/turnout.toml", real_file="/srv/a/turnout.toml", directory="/srv/a")
ELSEWHERE = Definition(file="/srv/b/turnout.toml", real_file="/srv/b/turnout.toml", directory="/srv/b")
COMMAND = ("sleep", "600")
Opens = Callable[..., Session]


class FakePreparation:
    """Settings that were written, or were not, and what is taken back."""

    def __init__(self, *, has_settings: bool = True) -> None:
        self.has_settings = has_settings
        self.undone: list[BaseException] = []

    def undo(self, error: BaseException) -> None:
        self.undone.append(error)


@pytest.fixture
def opens(tmp_path: Path) -> Opens:
    """Open a session of the same service; ``verb`` and further options of the verb."""

    def session(verb: str = "up", *, definition: Definition | None = HERE, **options: Any) -> Session:
        progress = options.pop("progress", None)
        wanted = ServiceRequest(settings=SETTINGS, command=COMMAND, definition=definition)
        return Session(Home(tmp_path), wanted, VerbRequest(verb, **options), lock_timeout_s=0.1, progress=progress)

    return session


def prepared(session: Session, preparation: FakePreparation) -> FakePreparation:
    session._preparation = cast("Any", preparation)
    return preparation


def is_unlocked(session: Session) -> bool:
    return is_free(session.service.home.root)


def test_the_lock_is_held_from_enter_to_unlock(opens: Opens) -> None:
    session = opens()
    with session:
        assert not is_unlocked(session)
        session.unlock()
        assert is_unlocked(session)


def test_a_service_that_another_file_defines_is_refused_and_the_lock_goes(opens: Opens) -> None:
    with opens() as session:
        prepared(session, FakePreparation())
    refused = opens(definition=ELSEWHERE)
    with pytest.raises(UsageError, match="is defined in /srv/a"):
        refused.__enter__()
    assert is_unlocked(refused)
    with opens(definition=ELSEWHERE, take_over=True) as session:
        prepared(session, FakePreparation())
    assert definition_of(session.service.home) == ELSEWHERE


@pytest.mark.parametrize("has_settings", [True, False])
def test_a_definition_is_recorded_with_the_settings_and_not_before(opens: Opens, *, has_settings: bool) -> None:
    with opens() as session:
        prepared(session, FakePreparation(has_settings=has_settings))
        assert definition_of(session.service.home) is None
    assert definition_of(session.service.home) == (HERE if has_settings else None)


def fail(session: Session, preparation: FakePreparation, *, unlocked: bool = False) -> None:
    with session:
        prepared(session, preparation)
        if unlocked:
            session.unlock()
        raise ValueError("it failed")


def test_a_verb_that_failed_is_undone_under_the_lock_and_defines_nothing(opens: Opens) -> None:
    session = opens()

    class LockedUndo(FakePreparation):
        def undo(self, error: BaseException) -> None:
            assert not is_unlocked(session)
            super().undo(error)

    preparation = LockedUndo()
    with pytest.raises(ValueError, match="it failed") as caught:
        fail(session, preparation)
    assert preparation.undone == [caught.value]
    assert definition_of(session.service.home) is None
    assert is_unlocked(session)


def test_what_cannot_be_undone_hides_no_error(opens: Opens) -> None:
    class FullDisk(FakePreparation):
        def undo(self, error: BaseException) -> None:
            raise StateUnwritableError("No space left on device")

    session = opens()
    with pytest.raises(ValueError, match="it failed"):
        fail(session, FullDisk())
    assert is_unlocked(session)


def test_a_verb_that_fails_after_its_unlock_is_not_undone(opens: Opens) -> None:
    preparation = FakePreparation()
    with pytest.raises(ValueError, match="it failed"):
        fail(opens(), preparation, unlocked=True)
    assert preparation.undone == []


def test_a_definition_that_cannot_be_recorded_fails_no_verb(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StateUnwritableError("No space left on device")

    monkeypatch.setattr("turnout.lifecycle.session.record_definition", refuse)
    slow: list[str] = []
    with opens(progress=Progress(slow=slow.append)) as session:
        prepared(session, FakePreparation())
    assert slow == ["where t is defined was not recorded: No space left on device"]


def test_a_client_that_asks_takes_no_service_over(opens: Opens) -> None:
    typed, client = Definition(directory="/srv/a"), Definition(directory="/srv/client")
    for definition, automatic in ((typed, False), (client, True)):
        with opens(definition=definition, automatic=automatic) as session:
            prepared(session, FakePreparation())
    assert definition_of(session.service.home) == typed


def test_only_a_typed_up_has_a_wish_and_it_names_the_build(opens: Opens) -> None:
    session = opens()
    build = Build(COMMAND, str(Path.cwd()))
    assert session._wish() == f"up {build.id}"
    assert opens("deploy")._wish() == opens("up", from_router=True)._wish() == ""
