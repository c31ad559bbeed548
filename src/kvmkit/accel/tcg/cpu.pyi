from kvmkit.accel import Exit
from kvmkit.accel.tcg.vcpu_state import CpuState
from kvmkit.bus import AddressSpace
from kvmkit.memory import GuestMemory

class TcgCpu(CpuState):
    def __init__(self, memory: GuestMemory, ports: AddressSpace, mmio: AddressSpace, model: str) -> None: ...
    def run(self) -> Exit: ...
