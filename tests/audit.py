"""An audit of what is installed beside this interpreter (`make audit`): python -m tests.audit PATH-OF-PIP-AUDIT

Known vulnerabilities, where the service answers; releases that their authors withdrew, where the registry says so;
requirements that contradict each other; files that are no longer what was installed. Each check says that it ran, or
why not. A finding is an error; a service that does not answer is none.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

INSTALLED = {d.metadata["Name"]: d for d in metadata.distributions() if d.metadata["Name"] != "dualcalc"}
ACCEPTED: dict[str, str] = {}  # a vulnerability's identifier -> why it does not concern us
PIP = (sys.executable, "-m", "pip")


class NotChecked(Exception):
    """Why a check could not run."""


def called(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def last(text: str) -> str:
    return (text.strip().splitlines() or ["no word"])[-1].strip()


def vulnerabilities(audit: str) -> list[str]:
    """Known ones of the installed versions, by pip-audit."""
    place = sysconfig.get_paths()["purelib"]
    done = called(audit, "--path", place, "--format", "json", "--progress-spinner", "off", "--skip-editable")
    try:
        answers = json.loads(done.stdout)["dependencies"]
    except ValueError:
        raise NotChecked(last(done.stderr)) from None
    known = [answer for answer in answers if "vulns" in answer]
    unknown = [answer["name"] for answer in answers if "vulns" not in answer and answer["name"] != "dualcalc"]
    if not known:
        raise NotChecked(f"the service answered for none of {len(answers)} distributions")
    if unknown:
        print(f"     the service knows nothing of {', '.join(unknown)}")
    return [
        f"{answer['name']} {answer['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no release'}"
        for answer in known
        for v in answer["vulns"]
        if v["id"] not in ACCEPTED
    ]


def withdrawn(_: str) -> list[str]:
    """Releases that their authors withdrew ("yanked") from the registry, by a dry run of pip."""
    exact = [f"{name}=={d.version}" for name, d in INSTALLED.items()]
    options = "--dry-run --ignore-installed --no-deps --quiet --retries 1 --timeout 15".split()
    done = called(*PIP, "install", *options, *exact)
    if done.returncode:
        raise NotChecked(last(done.stderr))
    return [
        f"{name} {version}" for name, version in re.findall(r"yanked version: '(\S+)' .*?version (\S+)", done.stderr)
    ]


def requirements(_: str) -> list[str]:
    """What the distributions require of each other, by `pip check`."""
    done = called(*PIP, "check")
    return done.stdout.strip().splitlines() if done.returncode else []


def files(_: str) -> list[str]:
    """Files that are missing or have other bytes than RECORD, written with them, says: damage, not malice."""
    wrong = []
    for name, distribution in INSTALLED.items():
        for file in distribution.files or ():
            if file.hash is None:
                continue
            path = Path(str(file.locate()))
            if not path.exists():
                wrong.append(f"{name}: {file} is missing")
                continue
            digest = hashlib.new(file.hash.mode, path.read_bytes()).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                wrong.append(f"{name}: {file} was changed")
    return wrong


def main(audit: str) -> bool:
    """Run all checks; whether any found something."""
    found = False
    print(f"{len(INSTALLED)} distributions in {sysconfig.get_paths()['purelib']}")
    for check in (vulnerabilities, withdrawn, requirements, files):
        try:
            findings = check(audit)
        except NotChecked as reason:
            print(f"NOT CHECKED {check.__name__}: {reason}")
            continue
        print(f"checked {check.__name__}: {'nothing found' if not findings else f'{len(findings)} FOUND'}")
        for finding in findings:
            print(f"     {finding}")
        found |= bool(findings)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
