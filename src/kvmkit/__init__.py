"""kvmkit: a hypervisor you can import."""

TYPE_CHECKING = False  # typing's own would have to be imported, which `kvmkit --version` need not pay for
if TYPE_CHECKING:
    from kvmkit.manager.vm import VM as VM

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`kvmkit.VM`, imported when it is asked for."""
    if name == "VM":
        from kvmkit.manager.vm import VM

        return VM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
