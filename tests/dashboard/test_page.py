"""The page in a real Chromium: what happens is seen to appear, and nothing complains or asks another host.

Screenshots are kept in artifacts/, which is not part of the project.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from chromium import Chromium
from dashboard_support import Served
from e2e_support import Turnout, ask, line_daemon
from registry_support import write_both
from support import eventually
from turnout.config.settings import Settings, dump_settings, parse_address
from turnout.core.model import Deployment, Desired, Snapshot

PICTURES = Path(__file__).parents[2] / "artifacts"
DESK, PHONE = (1280, 900), (390, 844)


@pytest.fixture
def browser() -> Iterator[Chromium]:
    with Chromium() as browser:
        browser.screen(*DESK)
        browser.media(prefers_reduced_motion="reduce")  # a picture of something that moves is a picture of chance
        yield browser


@pytest.fixture
def served(turnout: Turnout) -> Iterator[Served]:
    """A dashboard, of a service that runs version v1, which is switched to v2 by the next deploy."""
    turnout.configure(line_daemon("--version", "v1"), observe="10m")
    turnout.run("up")
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="10m")
    with Served(turnout.env, turnout.home.root.parent) as served:
        yield served


def opened(browser: Chromium, served: Served) -> None:
    browser.go(served.link)
    browser.until("#link", "live")
    browser.until("#headline")


def is_clean(browser: Chromium, served: Served) -> None:
    """Nothing complained, and nothing went elsewhere."""
    assert browser.complaints == []
    assert browser.requests
    assert {url for url in browser.requests if not url.startswith(f"{served.origin}/")} <= {"about:blank"}


def blade(browser: Chromium) -> str:
    """Which way the switch lies."""
    found: str = browser.value("document.querySelector('.blade').style.transform")
    return found


def confirm(browser: Chromium, verb: str, *words: str) -> None:
    browser.until(f"[data-verb={verb}]:enabled")
    browser.click(f"[data-verb={verb}]")
    browser.until("#confirm-lead", "It would:")
    browser.until("#confirm-lines", *words)
    browser.click("#confirm-yes")


def test_a_deploy_is_seen_to_appear_on_every_screen(browser: Chromium, served: Served, turnout: Turnout) -> None:
    opened(browser, served)
    browser.until("#headline", "v1 is healthy and serves")
    browser.until("#daemons", "active", "v1", "healthy")
    browser.until("#listen", f"127.0.0.1:{turnout.port}")
    straight = blade(browser)
    browser.picture(PICTURES / "serving.png")

    browser.until("[data-verb=deploy]:enabled")
    browser.click("[data-verb=deploy]")
    browser.until("#confirm-lines", "begin generation 2 (deploy)", "--version v2", "switch new connections from")
    browser.picture(PICTURES / "confirm.png", whole=False)
    browser.click("#confirm-yes")
    browser.until("#headline", "v2 serves, and is observed for", " more")
    browser.until("#daemons", "active", "v2", "warm", "v1")
    browser.until("#window-text", "more of 10 min 0 s")
    browser.until("#streak-text", "0 of 3 failed checks in a row")
    browser.until("#action-what", "turnout deploy is done")
    browser.until("#rollouts", "2 · deploy v2", "observed", "1 · start v1", "replaced")
    browser.until("#rollouts .decisions", "is active")
    browser.until("#log", "v2, pid")
    assert blade(browser) != straight, "the blade lies to the other track"
    assert "v2 serves" in browser.value("document.getElementById('announcer').textContent")
    assert ask(turnout.address) == "v2"

    for scheme in ("light", "dark"):
        for name, (width, height) in {"desk": DESK, "phone": PHONE}.items():
            browser.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
            browser.screen(width, height, phone=name == "phone")
            browser.until("#headline", "v2 serves")
            browser.picture(PICTURES / f"observed-{scheme}-{name}.png")
            assert browser.value("document.documentElement.scrollWidth") <= width, "nothing is wider than the screen"

    late = served.ask("POST", "/services/default/deploy", body={"generation": 1})
    assert late.status == 202
    browser.until("#action-fault", "the deployment stands at generation 2, not 1; nothing was changed")
    is_clean(browser, served)


def test_a_failure_in_the_window_is_seen_to_roll_back(browser: Chromium, served: Served, turnout: Turnout) -> None:
    opened(browser, served)
    turnout.run("deploy", "--detach")
    browser.until("#headline", "v2 serves, and is observed")
    turnout.kill(turnout.active()["pid"])
    browser.until("#headline", "v1 serves")
    browser.until("#detail", "generation 2 was put back at ", "has ended")
    browser.until("#mend-text", "turnout why 2")
    browser.until("#rollouts", "put back")
    browser.until("#reason", "Rollback reason: ")
    browser.picture(PICTURES / "put-back.png")
    is_clean(browser, served)


def test_a_candidate_that_fails_is_seen_with_its_last_words(
    browser: Chromium, served: Served, turnout: Turnout
) -> None:
    turnout.configure(["sh", "-c", "echo no such table >&2; exit 7"], version="v3")
    opened(browser, served)
    browser.until("#headline", "v1 is healthy")
    confirm(browser, "deploy", "begin generation 2")
    browser.until("#action-what", "turnout deploy did not come about")
    browser.until("#action-fault", "the candidate did not become healthy", "exit code 7")
    browser.until("#action-lines", "no such table")
    browser.until("#headline", "v1 serves")
    browser.until("#detail", "generation 2 was given up at ", "exit code 7")
    browser.until("#rollouts", "2 · deploy v3", "given up")
    browser.picture(PICTURES / "given-up.png")
    assert ask(turnout.address) == "v1"
    is_clean(browser, served)


def test_by_keyboard_escape_changes_nothing_and_a_rollback_is_confirmed(
    browser: Chromium, served: Served, turnout: Turnout
) -> None:
    turnout.run("deploy", "--detach")
    opened(browser, served)
    browser.until("#headline", "v2 serves")
    browser.value("document.querySelector('[data-verb=rollback]').focus()")
    browser.press("Enter", code=13, text="\r")
    browser.until("#confirm-lines", "switch back to")
    assert browser.value("document.activeElement.id") == "confirm-no", "what is harmless has the focus"
    browser.press("Escape", code=27)
    eventually(lambda: not browser.value("document.getElementById('confirm').open"))
    assert browser.value("document.activeElement.dataset.verb") == "rollback", "the focus comes back"
    browser.until("#headline", "v2 serves")
    browser.press("Enter", code=13, text="\r")
    browser.until("#confirm-lines", "switch back to")
    browser.press("Tab", code=9)
    assert browser.value("document.activeElement.id") == "confirm-yes"
    browser.press("Enter", code=13, text="\r")
    browser.until("#headline", "v1 serves")
    browser.until("#rollouts", "put back")
    assert ask(turnout.address) == "v1"
    unnamed = [
        node["nodeId"]
        for node in browser.ask("Accessibility.getFullAXTree")["nodes"]
        if node.get("role", {}).get("value") in {"button", "combobox", "progressbar", "link", "region"}
        and not node.get("name", {}).get("value")
    ]
    assert unnamed == [], "a screen reader has a name for everything that can be used"
    is_clean(browser, served)


def test_a_lost_router_and_a_lost_dashboard_are_seen_and_heal(
    browser: Chromium, served: Served, turnout: Turnout
) -> None:
    opened(browser, served)
    browser.until("#headline", "v1 is healthy")
    router = turnout.router_pid()
    turnout.kill(router, signal.SIGSTOP)
    browser.until("#headline", f"No router answers: 127.0.0.1:{turnout.port} is not served")
    browser.until("#detail", "since ")
    browser.until("#mend-text", "turnout up")
    browser.until("#router", "no router answers")
    browser.picture(PICTURES / "router-lost.png")
    turnout.kill(router, signal.SIGCONT)
    browser.until("#headline", "v1 is healthy")

    served.process.send_signal(signal.SIGSTOP)
    browser.until("#notice", "The dashboard does not answer since", "turnout dashboard")
    eventually(lambda: browser.value("document.querySelector('[data-verb=deploy]').disabled"))
    browser.picture(PICTURES / "dashboard-lost.png")
    served.process.send_signal(signal.SIGCONT)
    browser.until("#link", "live")
    eventually(lambda: browser.text("#notice") == "", why="the notice stays")
    is_clean(browser, served)


def test_paused_is_seen_and_resumed_from_the_page(browser: Chromium, served: Served, turnout: Turnout) -> None:
    opened(browser, served)
    browser.until("#headline", "v1 is healthy")
    confirm(browser, "pause", "hold new connections")
    browser.until("#headline", "Paused: new connections are held")
    assert browser.value("Boolean(document.querySelector('.gate'))"), "the gate is drawn"
    browser.until("#buttons", "Resume")
    browser.picture(PICTURES / "paused.png")
    confirm(browser, "resume", "let held connections go")
    browser.until("#headline", "v1 is healthy")
    is_clean(browser, served)


def test_what_a_daemon_says_is_text(browser: Chromium, lied_to: Served) -> None:
    opened(browser, lied_to)
    shown = "<img src=x onerror='window.owned=1'><script>window.owned=1</script>"
    for place in ("#daemons .version", "#daemons .where", "#reason", "#rollouts .what", "#rollouts .decisions"):
        browser.until(place, shown)
    browser.value(
        "(choice => { choice.value = 'router'; choice.dispatchEvent(new Event('change')); })"
        "(document.getElementById('log-choice'))"
    )
    browser.until("#log", shown)
    assert browser.value("window.owned") is None
    assert browser.value("document.querySelectorAll('main img, main script').length") == 0
    is_clean(browser, lied_to)


def test_the_token_is_taken_out_of_the_address_and_outlives_a_reload(browser: Chromium, lied_to: Served) -> None:
    opened(browser, lied_to)
    assert browser.value("location.href") == f"{lied_to.origin}/"
    assert browser.value("document.cookie") == ""
    browser.ask("Page.reload")
    browser.until("#link", "live")
    is_clean(browser, lied_to)


def test_without_the_token_the_page_says_where_to_get_it_and_shows_nothing(browser: Chromium, lied_to: Served) -> None:
    browser.go(f"{lied_to.origin}/")
    browser.until("#notice", "This page needs the link that turnout dashboard printed")
    assert browser.text("#main") == ""
    assert [one for one in browser.complaints if "401" not in one] == []


def test_nothing_inline_runs_and_no_text_becomes_html(browser: Chromium, lied_to: Served) -> None:
    opened(browser, lied_to)
    said = browser.value(
        "(() => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.name; } })()"
    )
    assert said == "TypeError"
    browser.value(
        "document.body.append(Object.assign(document.createElement('style'), {textContent: 'h1{width:7px}'}))"
    )
    assert browser.value("getComputedStyle(document.querySelector('h1')).width") != "7px"
    assert any("style-src" in one for one in browser.complaints), "the policy says that it refused it"


def test_every_service_has_a_tab_that_says_how_it_is(browser: Chromium, turnout: Turnout) -> None:
    for name in ("a-stopped-one", "cache", "search"):
        service = turnout.home.service(name)
        service.create()
        settings = Settings(name=name, listen=(parse_address("127.0.0.1:47777"),))
        service.settings.write_bytes(dump_settings(settings))
        desired = Desired.RUNNING if name == "cache" else Desired.STOPPED
        write_both(service.registry, Snapshot({}, deployment=Deployment(generation=1, desired=desired)))
    with Served(turnout.env, turnout.home.root.parent) as served:
        opened(browser, served)
        browser.until("#services", "cache", "search")
        browser.until("#headline", "Nothing runs, and it should: 127.0.0.1:47777 is not served")
        browser.until("#mend-text", "turnout up --service cache")
        browser.click("[data-key=search]")
        browser.until("#headline", "Stopped by hand")
        failed = Deployment(generation=1, desired=Desired.STOPPED, rollback_reason="it did not become healthy")
        write_both(turnout.home.service("search").registry, Snapshot({}, deployment=failed))
        browser.until("#headline", "The first start failed: it did not become healthy")
        browser.until("#mend-text", "turnout why 1 --service search")
        browser.until("#detail", "127.0.0.1:47777 refuses what comes")
        assert browser.value("document.querySelector('[data-key=cache]').ariaLabel").startswith("cache: Nothing runs")
        browser.picture(PICTURES / "two-services.png")
        is_clean(browser, served)


def test_a_home_in_which_nothing_has_been_says_how_to_begin(browser: Chromium, turnout: Turnout) -> None:
    with Served(turnout.env, turnout.home.root.parent) as served:
        browser.go(served.link)
        browser.until("#notice", "No service has been here yet.", "turnout up -- COMMAND --port {port}")
        is_clean(browser, served)
