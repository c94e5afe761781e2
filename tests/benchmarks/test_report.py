"""The report says first where turnout loses, and its plots are whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from bench import report
from bench.arena import BenchError
from bench.cases import CASES, CONNECTS, EXCHANGES, HEADLINES
from bench.contenders import CONTENDERS
from bench.draw import draw
from bench.losses import first_paragraph, losses
from bench.raw import Run
from bench.report import document

SVG = "{http://www.w3.org/2000/svg}"


def figures(scale: float) -> dict[str, float]:
    """What a run of the load generator says: every latency and CPU time times ``scale``, every rate divided by it."""
    times = dict.fromkeys(("p50_us", "p99_us", "p999_us", "cpu_us"), 10.0 * scale)
    return times | dict.fromkeys(("ops_s", "per_s", "bytes_s"), 1000000000.0 / scale) | {"count": 1000.0}


def switched(first_ms: float, **failed: int) -> dict[str, Any]:
    return {
        "switches": 3,
        "connections": 300,
        "first_ms": [first_ms] * 3,
        "last_old_ms": [0.1] * 3,
        "failed": failed,
        "asked_again": 0,
        "worst_ms": 5.0,
        "p50_ms": 0.2,
        "p999_ms": 4.0,
        "timeline": [[-10.0, 0.2, "A"], [1.0, 0.3, "B"], [2.0, 0.4, "refused"]],
    }


def record(relay: float = 0.5, *, switch_ms: float = 1.0) -> dict[str, Any]:
    """A whole run in which the relay needs ``relay`` times what the peers do."""
    scales = {"direct": 0.1, "relay": relay, "haproxy": 1.0, "nginx": 1.0}
    cases = [
        {"kind": "case", "case": case.name, "figures": {name: [figures(one)] * 3 for name, one in scales.items()}}
        for case in CASES
    ]
    idle = {name: [{"bytes": 1000.0 * scale, "cpu_share": 0.001}] for name, scale in scales.items()}
    growth = {
        "0": figures(1) | {"memory": 2e7, "cpu_share": 0.001},
        "1000": figures(2) | {"memory": 3e7, "cpu_share": 0.002},
    }
    found = [
        *cases,
        {"kind": "idle", "figures": {"5000": idle}},
        {"kind": "switch", "name": "relay", "figures": switched(switch_ms)},
        {"kind": "switch", "name": "nginx reload", "figures": switched(50.0, reset=2)},
        {"kind": "growth", "curve": "connections", "plane": "relay", "points": growth},
    ]
    small = {"group": "codec", "name": "test", "extra_info": {}, "stats": {"median": 1e-5, "rounds": 7}}
    told = {
        each.name: {"version": "1", "settings": each.settings, "missing": "gone" if each.name == "envoy" else ""}
        for each in CONTENDERS
    }
    about = {"turnout": "1", "commit": "abc", "cpu": "C", "cores": 2, "kernel": "6", "python": "3", "scale": "full"}
    return {
        "datetime": "2026-01-02T03:04:05",
        "machine_info": {"bench": about | {"contenders": told}},
        "benchmarks": [*({"extra_info": each} for each in found), small],
    }


def run_of(path: Path, raw: dict[str, Any]) -> Run:
    path.write_text(json.dumps(raw))
    return Run.read(path)


def test_where_turnout_loses_is_said_first(tmp_path: Path) -> None:
    run = run_of(tmp_path / "raw.json", record(1.5, switch_ms=60.0))
    text = document(run, draw(run))
    first = text.split("\n\n")[1]
    assert first.startswith("**Where turnout loses.**")
    assert f"{EXCHANGES[0].name}, median latency: 1.50 x haproxy" in first
    assert f"{CONNECTS.name}, rate: 0.67 x haproxy, 0.67 x nginx" in first
    assert "first new connection after 60.0 ms: nginx reload 50.0 ms" in first
    assert len(losses(run)) == 2 * len(CASES) + 2 + 1


def test_where_it_does_not_lose_nothing_is_made_up(tmp_path: Path) -> None:
    run = run_of(tmp_path / "raw.json", record(0.5))
    assert losses(run) == []
    assert "In no case" in first_paragraph(run)


def test_a_direct_connection_is_no_peer_that_is_lost_to_but_its_distance_is_said(tmp_path: Path) -> None:
    run = run_of(tmp_path / "raw.json", record(0.5))
    assert "5.0 x as long as with no proxy" in first_paragraph(run)


def test_who_was_left_out_is_named_with_the_reason(tmp_path: Path) -> None:
    run = run_of(tmp_path / "raw.json", record())
    assert "Left out: envoy (gone)." in document(run, [])


def test_failed_connections_of_a_switch_stand_in_its_row(tmp_path: Path) -> None:
    run = run_of(tmp_path / "raw.json", record())
    row = next(line for line in document(run, []).splitlines() if line.startswith("| nginx reload"))
    assert "| 2 reset |" in row


def test_a_peer_that_failed_a_client_is_named_with_the_case(tmp_path: Path) -> None:
    raw = record()
    raw["benchmarks"][0]["extra_info"]["figures"]["nginx"] = [figures(1) | {"failed": 2.0}, figures(1), figures(1)]
    said = f"were run again: nginx, {CASES[0].name}: 2 in 3 rounds."
    assert said in document(run_of(tmp_path / "raw.json", raw), [])
    assert "run again" not in document(run_of(tmp_path / "raw.json", record()), [])


def test_a_direct_plane_stands_beside_no_proxy_with_what_it_must_reach(tmp_path: Path) -> None:
    raw = record()
    for each in raw["benchmarks"]:
        if each["extra_info"].get("kind") == "case":
            each["extra_info"]["figures"]["sk_lookup"] = [figures(0.1 * 1.05)] * 3
    text = document(run_of(tmp_path / "raw.json", raw), [])
    beside = text.partition("## The direct planes beside no proxy at all")[2].partition("## ")[0]
    rows = [line for line in beside.splitlines() if "1.05 (" in line or "0.95 (" in line]
    assert len(rows) == len(HEADLINES)
    assert all("| must |" in row for row in rows)
    assert "| case | sk_lookup | direct |" in beside
    assert "reuseport" not in beside


def test_plots_are_whole_follow_light_and_dark_and_need_no_font_from_outside(tmp_path: Path) -> None:
    run = run_of(tmp_path / "raw.json", record())
    plots = draw(run)
    assert {"latency", "connects", "bulk", "switch", "growth-connections"} <= plots.keys()
    for svg in plots.values():
        root = ET.fromstring(svg)  # made here
        assert root.tag == f"{SVG}svg"
        assert "prefers-color-scheme:dark" in svg
        assert "url(" not in svg
        assert "@import" not in svg
        width = float(root.attrib["width"])
        assert all(0 <= float(box.attrib["x"]) + float(box.attrib["width"]) <= width for box in root.iter(f"{SVG}rect"))
        assert all("nan" not in text.attrib["x"] for text in root.iter(f"{SVG}text"))


def test_one_command_writes_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "raw.json").write_text(json.dumps(record()))
    assert report.main([str(tmp_path / "raw.json"), "--out", str(tmp_path / "out")]) == 0
    made = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert {"RESULTS.md", "results.json", "plots/latency.svg", "plots/switch.svg"} <= made
    assert json.loads((tmp_path / "out" / "results.json").read_text())["about"]["turnout"] == "1"


def test_what_is_no_record_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw.json").write_text("{}")
    with pytest.raises(BenchError, match="not the record of a benchmark run"):
        report.main([str(tmp_path / "raw.json")])
