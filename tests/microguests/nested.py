"""A VMM of some system calls, to be run inside a guest: makes a VM of its KVM, and runs two instructions in it."""

from __future__ import annotations

import struct

from assembler import assemble

# The guest's code is `mov al, 'N'; out 0xe9, al; hlt`, in real mode. What it writes goes to standard output. The exit
# status is 0 when it wrote and halted, the number of the step that the kernel refused, or 100 + KVM's exit reason.
CODE = r"""
.macro sys number
    mov eax, \number
    syscall
    test rax, rax
    js failed
.endm
    lea rdi, [rip + device]
    mov esi, 2
    xor edx, edx
    mov r15d, 1
    sys 2                       # open
    mov r12, rax
    mov rdi, r12
    mov esi, 0xae01             # KVM_CREATE_VM
    xor edx, edx
    mov r15d, 2
    sys 16
    mov r13, rax
    xor edi, edi                # a page for the guest
    mov esi, 4096
    mov edx, 3
    mov r10d, 0x21              # shared, anonymous
    mov r8, -1
    xor r9d, r9d
    mov r15d, 3
    sys 9
    mov rbx, rax
    mov eax, dword ptr [rip + guest]
    mov [rbx], eax
    mov eax, dword ptr [rip + guest + 4]
    mov [rbx + 4], eax
    sub rsp, 1024
    mov qword ptr [rsp], 0      # slot, flags
    mov qword ptr [rsp + 8], 0x1000
    mov qword ptr [rsp + 16], 4096
    mov [rsp + 24], rbx
    mov rdi, r13
    mov esi, 0x4020ae46         # KVM_SET_USER_MEMORY_REGION
    mov rdx, rsp
    mov r15d, 4
    sys 16
    mov rdi, r13
    mov esi, 0xae41             # KVM_CREATE_VCPU
    xor edx, edx
    mov r15d, 5
    sys 16
    mov r14, rax
    mov rdi, r12
    mov esi, 0xae04             # KVM_GET_VCPU_MMAP_SIZE
    xor edx, edx
    mov r15d, 6
    sys 16
    mov rsi, rax
    xor edi, edi
    mov edx, 3
    mov r10d, 1
    mov r8, r14
    xor r9d, r9d
    mov r15d, 7
    sys 9
    mov rbx, rax                # struct kvm_run
    mov rdi, r14
    mov esi, 0x8138ae83         # KVM_GET_SREGS
    mov rdx, rsp
    mov r15d, 8
    sys 16
    mov qword ptr [rsp], 0      # cs.base
    mov word ptr [rsp + 12], 0  # cs.selector
    mov rdi, r14
    mov esi, 0x4138ae84         # KVM_SET_SREGS
    mov rdx, rsp
    mov r15d, 9
    sys 16
    mov rdi, rsp
    xor eax, eax
    mov ecx, 18
    rep stosq
    mov qword ptr [rsp + 128], 0x1000   # rip
    mov qword ptr [rsp + 136], 2        # rflags
    mov rdi, r14
    mov esi, 0x4090ae82         # KVM_SET_REGS
    mov rdx, rsp
    mov r15d, 10
    sys 16
run:
    mov rdi, r14
    mov esi, 0xae80             # KVM_RUN
    xor edx, edx
    mov r15d, 11
    sys 16
    mov eax, [rbx + 8]          # exit_reason
    cmp eax, 2                  # KVM_EXIT_IO
    je io
    cmp eax, 5                  # KVM_EXIT_HLT
    jne other
    lea rsi, [rip + halted]
    mov edx, offset halted_end - halted
    call say
    xor edi, edi
    jmp leave_
io:
    mov rsi, [rbx + 40]         # io.data_offset
    add rsi, rbx
    mov edx, 1
    call say
    jmp run
other:
    add eax, 100
    mov edi, eax
    jmp leave_
failed:
    mov edi, r15d
leave_:
    mov eax, 60
    syscall
say:
    mov edi, 1
    mov eax, 1
    syscall
    ret
device: .asciz "/dev/kvm"
halted: .ascii " from a guest of this guest\n"
halted_end:
.balign 8
guest: .byte 0xb0, 'N', 0xe6, 0xe9, 0xf4, 0xf4, 0xf4, 0xf4
"""

BASE = 0x400000
HEADERS = 64 + 56


def vmm() -> bytes:
    """It as a static ELF program for Linux on x86-64; the code does not mind where it stands."""
    code, _ = assemble(CODE, "long")
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, BASE + HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = HEADERS + len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, BASE, BASE, size, size, 0x1000)
    return identity + header + segment + code
