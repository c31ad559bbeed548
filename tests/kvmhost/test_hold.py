"""A Linux on kvm that is held and let go, and one that is reset and starts again."""

from __future__ import annotations

from kvmkit.machine import State

from .linux import Linux


def test_a_running_guest_can_be_held_and_let_go(linux: Linux) -> None:
    """Fifty times: nothing moves while it is held, a counter and the clock go on, and neither goes back."""
    linux.background(
        "rm -f /tmp/enough; n=0; while [ ! -e /tmp/enough ]; do "
        "n=$((n + 1)); echo $n > /tmp/n.new; mv /tmp/n.new /tmp/n; done"
    )
    linux.sh("while [ ! -s /tmp/n ]; do sleep 0.1; done")
    read = "read n < /tmp/n; read up idle < /proc/uptime; echo $n $up $(date +%s)"
    seen = [linux.sh(read).split()]
    try:
        for i in range(50):
            linux.machine.pause()
            assert linux.machine.state is State.PAUSED
            (vcpu,) = linux.machine.board.vcpus
            held = vcpu.get("regs"), vcpu.exits()
            assert (vcpu.get("regs"), vcpu.exits()) == held
            linux.machine.resume()
            if i % 10 == 9:
                seen.append(linux.sh(read).split())
        linux.sh("sleep 1.1")
        seen.append(linux.sh(read).split())
    finally:
        linux.sh("touch /tmp/enough")
    for column in zip(*seen, strict=True):
        values = [float(value) for value in column]
        assert values == sorted(values)
        assert values[-1] > values[0]


def test_with_reboot_a_reset_starts_it_again() -> None:
    with Linux(reboot=True) as guest:
        boots = [guest.sh("cat /proc/sys/kernel/random/boot_id")]
        guest.client.poweroff(reboot=True)
        guest.again()
        boots.append(guest.sh("cat /proc/sys/kernel/random/boot_id"))
        guest.machine.reset()  # the button: the guest is not asked
        guest.again()
        boots.append(guest.sh("cat /proc/sys/kernel/random/boot_id"))
        assert len(set(boots)) == 3
        assert guest.machine.state is State.RUNNING
