"""The audit sees what it looks for, and says what it could not look for."""

import json
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from . import audit

KNOWN = {"name": "a", "version": "1.0", "vulns": []}
VULNERABLE = {"name": "b", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}
YANKED = (
    "WARNING: The candidate selected for download or install is a yanked version: 'zarr' candidate (version 3.0.0 at"
)


def answering(monkeypatch, stdout="", stderr="", code=0):
    monkeypatch.setattr(audit, "called", lambda *command: CompletedProcess(command, code, stdout, stderr))


def test_vulnerabilities(monkeypatch):
    answering(monkeypatch, json.dumps({"dependencies": [KNOWN, VULNERABLE, SKIPPED]}), code=1)
    assert audit.vulnerabilities("") == ["b 2.0: PYSEC-1, mended in 2.1"]
    monkeypatch.setattr(audit, "ACCEPTED", {"PYSEC-1": "we never call it"})
    assert audit.vulnerabilities("") == []


@pytest.mark.parametrize("stdout", ["", json.dumps({"dependencies": [SKIPPED]})])
def test_a_service_that_does_not_answer_is_no_pass(monkeypatch, stdout):
    answering(monkeypatch, stdout, "ERROR: connection refused", 1)
    with pytest.raises(audit.NotChecked):
        audit.vulnerabilities("")
    with pytest.raises(audit.NotChecked, match="refused"):
        audit.withdrawn("")


def test_withdrawn_and_contradicting(monkeypatch):
    answering(monkeypatch, stderr=YANKED)
    assert audit.withdrawn("") == ["zarr 3.0.0"]
    answering(monkeypatch, "jax 0.6.1 requires scipy, which is not installed.\n", code=1)
    assert len(audit.requirements("")) == 1


def test_changed_and_missing_files(monkeypatch, tmp_path: Path):
    folder = tmp_path / "a-1.0.dist-info"
    folder.mkdir()
    same = "sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0"  # of nothing
    (folder / "RECORD").write_text(f"a.py,{same}\nb.py,{same}\nc.py,{same}\na-1.0.dist-info/RECORD,,\n")
    (tmp_path / "a.py").touch()
    (tmp_path / "b.py").write_text("changed")
    installed: dict[str, Distribution] = {"a": PathDistribution(folder)}
    monkeypatch.setattr(audit, "INSTALLED", installed)
    assert audit.files("") == ["a: b.py was changed", "a: c.py is missing"]


def test_only_findings_fail(monkeypatch, capsys):
    monkeypatch.setattr(audit, "INSTALLED", {})
    answering(monkeypatch, stderr="no network")
    assert not audit.main("")
    assert "NOT CHECKED vulnerabilities: no network" in capsys.readouterr().out
    answering(monkeypatch, json.dumps({"dependencies": [VULNERABLE]}))
    assert audit.main("")
    assert "checked vulnerabilities: 1 FOUND" in capsys.readouterr().out
