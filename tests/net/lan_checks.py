"""What test_lan.py runs in a network namespace: `python lan_checks.py CHECK`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "kvmkit"]


def call(*words: str, status: int = 0) -> str:
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=90)
    assert done.returncode == status, done
    return done.stdout + (done.stderr if status else "")


def tell(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def things() -> tuple[str, ...]:
    """Links, rules, processes and settings that a network could leave behind."""
    processes = tell("ps", "-eo", "args").count("dnsmasq --conf-file=/dev/null")
    names = [line.split(": ")[1] for line in tell("ip", "-o", "link").splitlines()]
    return (
        str(names),
        tell("nft", "list", "ruleset"),
        str(processes),
        Path("/proc/sys/net/ipv4/ip_forward").read_text(),
    )


def life() -> None:
    before = things()
    assert call("network", "create", "lab") == "lab 10.73.0.0/24\n"
    assert call("network", "create", "two", "--subnet", "10.9.0.0/20") == "two 10.9.0.0/20\n"
    assert "already" in call("network", "create", "lab", status=2)
    listed = json.loads(call("network", "ls", "--json"))
    assert [(each["name"], each["bridge"], each["running"]) for each in listed] == [
        ("lab", "kvm-lab", True),
        ("two", "kvm-two", True),
    ]
    assert "10.73.0.1/24" in tell("ip", "addr", "show", "kvm-lab")
    for name in ("lab", "two"):
        call("network", "rm", name)
    assert things() == before
    assert call("network", "ls", "--json") == "[]\n"
    # What is half made when it fails goes, too.
    subprocess.run(["ip", "link", "add", "kvm-bad", "type", "bridge"], check=True)
    assert "kvm-bad already" in call("network", "create", "bad", status=2)
    subprocess.run(["ip", "link", "del", "kvm-bad"], check=True)
    os.environ["PATH"] = f"{os.environ['KVMKIT_HOME']}:{os.environ['PATH']}"
    broken = Path(os.environ["KVMKIT_HOME"], "dnsmasq")
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    broken.chmod(0o755)
    assert "dnsmasq: no such thing" in call("network", "create", "bad", status=1)
    assert things() == before


def guests() -> None:
    server = subprocess.Popen(
        ["ip", "netns", "exec", "outside", sys.executable, "-m", "http.server", "8000", "--bind", "198.51.100.2"],
        cwd=os.environ["KVMKIT_HOME"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    call("network", "create", "lab")
    net = ["--accel", "tcg", "--net", "network=lab"]
    call("run", "-d", "--name", "web", *net)
    serve = "echo by name > /tmp/x; httpd -p 80 -h /tmp; ip -4 addr show eth0"
    shown = call("exec", "web", "--", "sh", "-c", serve)
    (lan,) = json.loads(call("network", "ls", "--json"))
    (vm,) = lan["vms"]
    assert vm["name"] == "web"
    assert f"inet {vm['address']}/24" in shown
    (row,) = json.loads(call("ps", "--json"))
    assert row["addresses"] == [vm["address"]]
    asked = [
        "timeout 20 wget -q -O - http://web/x",
        "ping -c1 -W5 host >/dev/null && echo host",
        "timeout 3 wget -q -O - http://host:8000/ || echo closed",
        "timeout 20 wget -q -O - http://198.51.100.2:8000/ | head -1",
    ]
    said = call("run", *net, "--timeout", "80", "--", "sh", "-c", "; ".join(asked)).splitlines()
    assert said[:3] == ["by name", "host", "closed"], said
    assert said[3].startswith("<!DOCTYPE"), said
    call("rename", "web", "shop")
    assert vm["address"] in call("run", *net, "--timeout", "80", "--", "ping", "-c1", "-W5", "-q", "shop")
    assert [each["name"] for each in json.loads(call("network", "ls", "--json"))[0]["vms"]] == ["shop"]
    call("rename", "shop", "web")
    # By DHCP too, and it is the same address.
    dhcp = "ip addr flush dev eth0; udhcpc -i eth0 -n -q -s /usr/lib/kvmkit/dhcp >/dev/null 2>&1; ip -4 addr show eth0"
    assert f"inet {vm['address']}/24" in call("exec", "web", "--", "sh", "-c", dhcp)
    assert "VMs are on the network lab: web" in call("network", "rm", "lab", status=2)
    pid = json.loads(call("ps", "--json"))[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 20
    while json.loads(call("network", "ls", "--json"))[0]["vms"] and time.monotonic() < until:
        time.sleep(0.05)
    names = [line.split(": ")[1] for line in tell("ip", "-o", "link").splitlines()]
    assert not [name for name in names if name.startswith("kvmkit")], "its TAP device went with it"
    call("network", "rm", "lab")
    call("rm", "-f", "web")
    server.terminate()
    _, log = server.communicate()
    assert "198.51.100.1 - - " in log, "the outside sees the host's address"


if __name__ == "__main__":
    {"life": life, "guests": guests}[sys.argv[1]]()
    print("done")
